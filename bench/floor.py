"""How fast a Redis-backed queue could be: the least work that is still safe, a script for each group at each hop.

    python bench/floor.py --workers 2 --rounds 5

A producer, a scheduler with a leader's token, and workers with a lease and a flight record for each request; the first
result wins and travels in the wake-up. No retries, limits, cancel, deadlines or tenants. Starts its own Redis (AOF
everysec unless `--no-aof`).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stoker_ops.embedded import start

SUBMITTED = 128
DISPATCHED = 64
IN_FLIGHT = 8192
PROMPT = array("H", range(128)).tobytes()
ANSWER = msgpack.packb([list(range(31_000, 31_016))])

SUBMIT = """
local keys, values, waiting = {}, {}, {}
for i = 1, #ARGV, 3 do
  local id = ARGV[i]
  keys[#keys + 1] = '{f}payload:' .. id
  keys[#keys + 1] = '{f}result:' .. id
  values[#values + 1] = '{f}payload:' .. id
  values[#values + 1] = ARGV[i + 2]
  waiting[#waiting + 1] = ARGV[i + 1]
  waiting[#waiting + 1] = id
end
if redis.call('EXISTS', unpack(keys)) > 0 then return 0 end
redis.call('MSET', unpack(values))
redis.call('ZADD', '{f}waiting', unpack(waiting))
if redis.call('LLEN', '{f}bell') == 0 then redis.call('RPUSH', '{f}bell', '1') end
return 1
"""
DISPATCH = """
if redis.call('GET', '{f}leader') ~= ARGV[1] then return 0 end
local batch, worker, ids = ARGV[2], ARGV[3], {}
for i = 4, #ARGV do ids[i - 3] = ARGV[i] end
local scores, taken, flights = redis.call('ZMSCORE', '{f}waiting', unpack(ids)), {}, {}
for i, id in ipairs(ids) do
  if scores[i] then
    taken[#taken + 1] = id
    flights[#flights + 1] = id
    flights[#flights + 1] = batch .. ' 1 ' .. scores[i]
  end
end
if #taken == 0 then return 0 end
redis.call('ZREM', '{f}waiting', unpack(taken))
redis.call('HSET', '{f}flights', unpack(flights))
redis.call('HSET', '{f}batch:' .. batch, 'worker', worker, 'ids', table.concat(taken, ' '), 'state', 'dispatched')
redis.call('ZADD', '{f}leases', redis.call('TIME')[1] * 1000 + 3000, batch)
redis.call('XADD', '{f}stream:' .. worker, '*', 'batch', batch)
return #taken
"""
BEGIN = """
local held = redis.call('HMGET', '{f}batch:' .. ARGV[1], 'worker', 'ids')
if held[1] ~= ARGV[2] then return {} end
redis.call('HSET', '{f}batch:' .. ARGV[1], 'state', 'running')
local ids, keys = {}, {}
for id in string.gmatch(held[2], '%S+') do
  ids[#ids + 1] = id
  keys[#keys + 1] = '{f}payload:' .. id
end
return {ids, redis.call('MGET', unpack(keys))}
"""
FINISH = """
local batch, worker, entry, ids = ARGV[1], ARGV[2], ARGV[3], {}
for i = 4, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local flights, gone, done, news = redis.call('HMGET', '{f}flights', unpack(ids)), {}, {}, {}
redis.call('XACK', '{f}stream:' .. worker, 'workers', entry)
redis.call('XDEL', '{f}stream:' .. worker, entry)
redis.call('ZREM', '{f}leases', batch)
redis.call('DEL', '{f}batch:' .. batch)
for i, id in ipairs(ids) do
  if flights[i] then
    local result = ARGV[2 * i + 3]
    redis.call('SET', '{f}result:' .. id, result, 'EX', 600)
    gone[#gone + 1] = '{f}payload:' .. id
    done[#done + 1] = id
    news[#news + 1] = id
    news[#news + 1] = result
  end
end
redis.call('HDEL', '{f}flights', unpack(done))
redis.call('UNLINK', unpack(gone))
redis.call('RPUSH', '{f}reply', cmsgpack.pack(news))
return #done
"""


def connect(url: str) -> Any:
    """Return a client whose commands are sent once."""
    return redis.Redis.from_url(url, socket_timeout=10, retry=Retry(NoBackoff(), 0), protocol=3)


def schedule(url: str, workers: list[str]) -> None:
    """Hand out what waits, to the workers in turn, until killed."""
    client, turns = connect(url), itertools.cycle(workers)
    client.set("{f}leader", "token")
    dispatch = client.register_script(DISPATCH)
    for number in itertools.count():
        ids = client.zrange("{f}waiting", 0, DISPATCHED - 1)
        if ids:
            dispatch(args=["token", f"b{number}", next(turns), *ids])
        else:
            client.blpop("{f}bell", 1)


def work(url: str, name: str) -> None:
    """Answer what is handed to one worker, until killed."""
    client, stream = connect(url), "{f}stream:" + name
    begin, finish = client.register_script(BEGIN), client.register_script(FINISH)
    client.xgroup_create(stream, "workers", id="0", mkstream=True)
    while True:
        read = client.xreadgroup("workers", name, {stream: ">"}, count=4, block=1000)
        entries = itertools.chain.from_iterable(read[stream.encode()]) if read else ()
        for entry, fields in entries:
            ids, payloads = begin(args=[fields[b"batch"], name])
            answers: list[Any] = [fields[b"batch"], name, entry]
            for request_id, payload in zip(ids, payloads, strict=True):
                prompt, _most = msgpack.unpackb(payload)
                assert len(prompt) == len(PROMPT)
                answers += (request_id, ANSWER)
            finish(args=answers)


class Producer:
    """Submits in groups, and takes the results out of the wake-ups."""

    def __init__(self, url: str) -> None:
        """Connect."""
        self.url = url
        self._client = connect(url)
        self._submit = self._client.register_script(SUBMIT)
        self._numbers = itertools.count()

    def run(self, n: int) -> float:
        """Return the requests a second of n requests, each of whose results is looked at."""
        began, sent, got = time.perf_counter(), 0, 0
        while got < n:
            while sent < n and sent - got < IN_FLIGHT:
                arguments: list[Any] = []
                for _ in range(min(SUBMITTED, n - sent)):
                    payload = msgpack.packb((PROMPT, 16))
                    arguments += (f"{next(self._numbers):010x}", time.time() * 1000, payload)
                self._submit(args=arguments)
                sent += len(arguments) // 3
            _, news = self._client.blpop("{f}reply", 10)
            answers = msgpack.unpackb(news, raw=True)[1::2]
            assert all(len(msgpack.unpackb(answer)[0]) == 16 for answer in answers)
            got += len(answers)
        return n / (time.perf_counter() - began)


@contextmanager
def floor(workers: int, aof: bool = True) -> Iterator[Producer]:
    """Run Redis, the scheduler and the workers for the time of a block; gives the producer."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder, start(folder) as server:
        if not aof:
            connect(server.url).config_set("appendonly", "no")
        names = [f"w{number}" for number in range(workers)]
        processes = [context.Process(target=schedule, args=(server.url, names), daemon=True)]
        processes += [context.Process(target=work, args=(server.url, name), daemon=True) for name in names]
        for process in processes:
            process.start()
        try:
            yield Producer(server.url)
        finally:
            for process in processes:
                process.kill()
                process.join()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-aof", dest="aof", action="store_false")
    options = parser.parse_args()
    with floor(options.workers, options.aof) as producer:
        producer.run(options.requests)
        rates = [producer.run(options.requests) for _ in range(options.rounds)]
    for rate in rates:
        print(f"{rate:10,.0f} requests/s")
    print(f"{statistics.median(rates):10,.0f} requests/s, median of {len(rates)} rounds")


if __name__ == "__main__":
    main()
