"""The configuration for production."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from stoker_ops.embedded import start

pytestmark = pytest.mark.servers("all")

CONF = Path(__file__).parents[2] / "ops" / "redis" / "redis.conf"


def test_every_server_accepts_it_and_runs_by_it(server_binary, short_tmp):
    # Its own folder need not exist here, and what follows the file wins: a socket in a folder of the test's own.
    here = short_tmp / "redis.conf"
    here.write_text(CONF.read_text().replace("dir /var/lib/redis", f"dir {short_tmp}"))
    extra = ("--include", str(here), "--port", "0")
    with (
        start(short_tmp, server=server_binary, extra_args=extra) as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        for name, value in {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "maxmemory": str(4 * 1024**3),
            "save": "",
            "hash-max-ziplist-entries": "32",
            "zset-max-ziplist-entries": "16",
            "repl-backlog-size": str(64 * 1024**2),
        }.items():
            assert client.config_get(name) == {name: value}


def test_every_setting_has_its_reason_above_it():
    lines = CONF.read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith("#"):
            assert above.startswith("# "), f"no reason above: {line}"
