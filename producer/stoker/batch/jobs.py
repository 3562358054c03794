"""The functions that RQ may call. Each gets its settings from the environment of the worker it runs in."""

from __future__ import annotations

import shutil
import threading

import structlog

from stoker.batch.run import run_batch
from stoker.batch.spec import Spec, check_batch_id, check_places
from stoker.config import Config, load_config
from stoker.errors import ConfigError
from stoker.store import batches
from stoker.store.connection import Store

log = structlog.get_logger()

stop = threading.Event()
"""Set by SIGTERM in the process that runs a job: the batch is left to its next run."""

SLOT_S = 600
"""How often a sweep runs."""


def run(batch_id: str) -> str:
    """Run a batch; gives how it is left. A run that does not get the lease does nothing."""
    state = run_batch(load_config(), check_batch_id(batch_id), stop)
    log.info("batch run ended", batch=batch_id, state=state)
    return state


def sweep() -> int:
    """Remove the folders of batches that are about to be forgotten; gives how many."""
    config = load_config()
    store = Store(config.home)
    try:
        ids = store.read_patiently(batches.batch_ids(store.keys))
        removed = 0
        for start in range(0, len(ids), config.group):
            records = store.read_patiently(batches.records(store.keys, ids[start : start + config.group]))
            removed += sum(_removed(record, config) for record in records if record)
    finally:
        store.close()
    return removed


def _removed(record: batches.BatchRecord, config: Config) -> bool:
    """Remove a batch's folder in the last hour of its record (or half of its time), so that no slot misses it."""
    kept_s = config.batch_ttl_s
    last_s = min(3600.0, kept_s / 2)
    if not record.over or (record.now_us - record.ended_us) / 1e6 < kept_s - last_s:
        return False
    spec = Spec.from_dict(record.spec)
    if spec.store == "redis":  # which forgets by itself
        return False
    try:
        check_places(spec, config)
    except ConfigError:
        return False
    folder = spec.parts
    if not folder.is_dir():
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True
