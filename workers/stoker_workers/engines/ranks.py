"""The processes of a tensor-parallel group: one logical worker, of which only the first rank takes requests.

`lead` starts the others and is called in the worker's child, whose children they are. Each loads its shards and then
repeats what the first rank does: it reads on standard input what joins and leaves before a step, and takes part in the
step. The ranks exchange tensors over the loopback interface and live and die together: a rank that ends takes the
group along, by the same cause; the end of the first rank is the end of its pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import structlog
import torch

from stoker.errors import ConfigError
from stoker_workers.card import read_config
from stoker_workers.engines.paged_batch import RANK_TIMEOUT_S, PagedBatch, PagedOptions

log = structlog.get_logger()

dist: Any = torch.distributed  # its stores are not among what it says to export

LOOPBACK = "127.0.0.1"
EXIT_CRASHED = 1
EXIT_REFUSED = 3
_END_S = 10.0
_VERDICT_S = 2.0


class Followers:
    """The ranks behind the first, as the first sees them."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Watch them: this process ends as soon as one of them does."""
        self._processes = processes
        self._closing = threading.Event()
        self._lost = threading.Event()
        for rank, process in enumerate(processes, start=1):
            threading.Thread(target=self._watch, args=(rank, process), name=f"rank-{rank}", daemon=True).start()

    def tell(self, orders: list[list[Any]]) -> None:
        """Have them take a step, after what `orders` say."""
        for process in self._processes:
            _pipe(process).write(json.dumps(orders).encode() + b"\n")
            _pipe(process).flush()

    @contextlib.contextmanager
    def shared_fate(self) -> Iterator[None]:
        """Wait, when the block fails, whether a rank was lost: that ends this process, by the rank's cause."""
        try:
            yield
        except Exception:
            if self._lost.wait(_VERDICT_S):
                threading.Event().wait()
            raise

    def close(self) -> None:
        """End them, and wait until they are gone."""
        self._closing.set()
        for process in self._processes:
            with contextlib.suppress(OSError):
                _pipe(process).close()
        for process in self._processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if code == EXIT_REFUSED:
            # What it found wrong with the model is found here too, and said better.
            self._closing.wait(_END_S)
        if self._closing.is_set():
            return
        self._lost.set()
        log.error("a rank ended, and its group with it", rank=rank, code=code)
        sys.stderr.flush()
        if code == -signal.SIGKILL:
            # Nobody's fault, and so is the end of the group.
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(EXIT_CRASHED)


def lead(options: PagedOptions) -> Followers:
    """Start the other ranks and join them as the first; raises `ConfigError` when the model cannot be split so."""
    _check_heads(options)
    _check_devices(options)
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    _use_loopback()
    store = dist.TCPStore(
        LOOPBACK,
        port,
        options.ranks,
        is_master=True,
        timeout=timedelta(seconds=RANK_TIMEOUT_S),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    command = [sys.executable, "-m", "stoker_workers.engines.ranks"]
    processes = []
    for rank in range(1, options.ranks):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr)
        settings = {"rank": rank, "port": port, "options": asdict(options)}
        _pipe(process).write(json.dumps(settings).encode() + b"\n")
        _pipe(process).flush()
        processes.append(process)
    followers = Followers(processes)
    with followers.shared_fate():
        _join(store, 0, options)
    return followers


def follow() -> None:
    """Be another rank than the first, until the first ends."""
    from stoker_workers.process import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orders = sys.stdin.buffer
    settings = json.loads(orders.readline())
    options = PagedOptions(**settings["options"])
    _use_loopback()
    timeout = timedelta(seconds=RANK_TIMEOUT_S)
    store = dist.TCPStore(LOOPBACK, settings["port"], options.ranks, is_master=False, timeout=timeout)
    _join(store, settings["rank"], options)
    batch = PagedBatch(options)
    for line in orders:
        for order in json.loads(line):
            batch.apply(order)
        batch.step()


def _join(store: Any, rank: int, options: PagedOptions) -> None:
    device = torch.device(options.device)
    timeout = timedelta(seconds=RANK_TIMEOUT_S)
    os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")  # else continuous batching warns of its cost, on CPUs too
    if device.type != "cuda":
        dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks, timeout=timeout)
        return
    index = (device.index or 0) + rank
    os.environ["LOCAL_RANK"] = str(index)  # where transformers puts this rank's shards
    torch.cuda.set_device(index)
    dist.init_process_group(
        "nccl",
        store=store,
        rank=rank,
        world_size=options.ranks,
        timeout=timeout,
        device_id=torch.device("cuda", index),
    )


def _use_loopback() -> None:
    """Keep gloo off the network: by default it listens on whatever the host's name resolves to."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if names:
        os.environ["GLOO_SOCKET_IFNAME"] = names[0]


def _check_heads(options: PagedOptions) -> None:
    config = read_config(Path(options.path))
    text = config.get("text_config") or config
    heads = text.get("num_attention_heads") or 0
    for field, number in (("attention", heads), ("key-value", text.get("num_key_value_heads") or heads)):
        if number % options.ranks:
            raise ConfigError(f"tensor_parallel: must divide the model's {number} {field} heads, got {options.ranks}")


def _check_devices(options: PagedOptions) -> None:
    device = torch.device(options.device)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) + options.ranks > found:
        raise ConfigError(
            f"tensor_parallel: {options.ranks} GPUs from {options.device} on are needed, torch finds {found}"
        )
    if device.type == "cpu" and found:
        # transformers splits a model over the accelerator that it finds, whatever device is asked for.
        raise ConfigError("tensor_parallel: on the CPU of a machine with GPUs, set CUDA_VISIBLE_DEVICES to nothing")


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise RuntimeError("the rank has no pipe")
    return process.stdin


def run() -> None:
    """Run `follow`, and end without the interpreter's shutdown, which waits for the other ranks' sockets."""
    code = 0
    try:
        follow()
    except ConfigError as error:
        log.error("rank refuses the model", error=str(error))
        code = EXIT_REFUSED
    except BaseException:
        log.exception("rank failed")
        code = EXIT_CRASHED
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
