"""Writes users.acl (Redis 7 and newer, Valkey) and users-6.2.acl beside this file: `python ops/redis/write_users.py`.

A role may use exactly the commands that its code sends, each on the keys that it sends them for. Scripts run with the
rights of their caller, so what they do inside stands here too; `tests/ops/test_users.py` takes each grant away in turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Grants = Mapping[str, str]
"""What may be done to keys: key, behind `stoker:{<queue>}:`, -> commands."""

HERE = Path(__file__).parent
PREFIX = "stoker:{*}:"

ANYBODY = "ping select client|setname time"
"""Commands without a key that every role needs; HELLO and AUTH are open to all."""

ENDING: Grants = {
    "active": "hdel hincrby",
    "bell": "llen pexpire rpush",
    "counts": "hdel hincrby",
    "deadlines": "zrem",
    "delayed": "zrem",
    "events": "xadd",
    "flight:*": "get unlink",
    "lane:*": "zrem",
    "never": "del",
    "payload:*": "unlink",
    "reply:*": "ltrim pexpire rpush",
    "result:*": "set",
    "sheddable": "zrem",
    "tokens:*": "pexpire xadd",
}
"""To end a request: everybody can, a client by cancelling it."""

BURYING: Grants = {"dead": "zadd", "dead:*": "set", "payload:*": "get"}
"""To make a dead letter of what ends."""

REQUEUEING: Grants = {"flight:*": "mget set", "lane:*": "zadd", "sheddable": "zadd"}
"""To put a request back into its lane."""

FORGETTING: Grants = {
    "beats": "zrem",
    "credit": "hdel",
    "inc": "hdel hget",
    "quarantine": "del get",
    "stream:*": "del",
    "void:*": "set",
    "work:*": "del hlen",
}
"""To forget an incarnation."""

SUBMITTING: Grants = {
    "deadlines": "zadd",
    "lane:*": "zadd",
    "mark": "mget set",
    "result:*": "exists getrange",
    "sheddable": "zadd",
    "skew": "mget",
}
"""To put a request into the queue."""

AGREEING: Grants = {"counts": "hmget", "inc": "hlen", "shards": "get set"}
"""To mean the same number of shards as everybody."""

WATCHING: Grants = {
    "active": "hmget hrandfield",
    "answers": "lrange",
    "batch:*": "hgetall",
    "batches": "zrange",
    "beats": "zrange",
    "card": "get",
    "counts": "hgetall",
    "credit": "hgetall",
    "dead": "zcard",
    "deadlines": "zrange",
    "delayed": "zcard zrange",
    "generation": "get",
    "h": "get",
    "histograms": "hgetall",
    "inc": "hgetall",
    "lane:*": "zcard zrandmember zrange",
    "leader": "hmget",
    "quarantine": "get",
    "rates": "hgetall",
    "shards": "get",
    "tenants": "hgetall hmget",
    "void:*": "get",
    "work:*": "hlen hvals",
}
"""Figures and names, but nothing that anybody asked or was answered."""


def together(*grants: Grants) -> dict[str, str]:
    """Return all that several grants allow."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for some in grants:
        for key, commands in some.items():
            found[key].update(commands.split())
    return {key: " ".join(sorted(commands)) for key, commands in sorted(found.items())}


PRODUCER = together(
    ENDING,
    AGREEING,
    SUBMITTING,
    {
        "active": "hlen hrandfield",
        "beats": "zcount",
        "card": "get",
        "counts": "hmget",
        "flight:*": "getrange",
        "generation": "get mget set",
        "mark": "persist pexpire",
        "payload:*": "exists getrange mset",
        "rates": "hmget",
        "reply:*": "blpop lpop",
        "result:*": "mget",
        "sheddable": "zrevrange",
        "lane:*": "zcount",
        "leader": "hmget",
        "tenants": "exists hmget",
        "tokens:*": "xread",
    },
)
SCHEDULER = together(
    ENDING,
    AGREEING,
    BURYING,
    REQUEUEING,
    FORGETTING,
    {
        "active": "hmget hrandfield",
        "answers": "lrange",
        "beats": "zadd zrange zscore",
        "bell": "blpop",
        "card": "get",
        "counts": "hget hgetall",
        "credit": "hget hgetall hincrby",
        "dead": "zcard zremrangebyscore",
        "deadlines": "zrange zrangebyscore",
        "delayed": "zcard zrange zrangebyscore",
        "epoch": "incr",
        "flight:*": "mset",
        "generation": "get mget set",
        "grace": "mget set",
        "h": "mget set",
        "histograms": "hgetall",
        "inc": "hgetall hset",
        "kept": "zrangebyscore zrem",
        "kept:*": "del hgetall",
        "lane:*": "zcard zmscore zrandmember zrange zscore",
        "leader": "hdel hget hmget hset",
        "obituary:*": "get",
        "payload:*": "getrange",
        "quarantine": "set",
        "rates": "hgetall",
        "skew": "incrby",
        "stream:*": "xadd",
        "tenants": "hmget",
        "tick": "mget set",
        "void:*": "exists",
        "work:*": "hdel hgetall hkeys hmget hset hvals",
    },
)
WORKER = together(
    ENDING,
    AGREEING,
    BURYING,
    REQUEUEING,
    FORGETTING,
    {
        "answers": "ltrim rpush",
        "beats": "zadd zrange",
        "card": "get set",
        "counts": "hget",
        "credit": "hincrby hset",
        "delayed": "zadd",
        "flight:*": "mset",
        "generation": "get set",
        "h": "get",
        "histograms": "hincrby",
        "inc": "hexists hgetall hset",
        "incs": "incr",
        "kept": "zadd",
        "kept:*": "hincrby",
        "obituary:*": "set",
        "payload:*": "mget",
        "rates": "hincrby hmget hset",
        "stream:*": "xack xadd xdel xgroup|create xreadgroup",
        "tickets": "incr",
        "tokens:*": "xrange",
        "void:*": "get",
        "work:*": "hdel hget hgetall hmget hset",
    },
)
BATCHING: Grants = {
    "batch:*": "hdel hget hgetall hincrby hmget hset pexpire",
    "batches": "pexpire pttl zadd zcount zrange zremrangebyscore",
    "file:*": "getrange pexpire set setrange unlink",
    "files:*": "hdel hgetall hset pexpire",
    "lapses": "zadd zrange zrem",
}
ADMIN = together(
    ENDING,
    AGREEING,
    SUBMITTING,
    WATCHING,
    {
        "card": "del set",
        "dead": "zrange zrem",
        "dead:*": "del get getrange unlink",
        "delayed": "zscore",
        "inc": "hset",
        "lane:*": "zcount zscore",
        "payload:*": "getrange set",
        "shards": "del",
        "tenants": "hdel hexists hlen hset",
        "work:*": "hexists",
    },
)

RQ_TRANSACTIONS = "multi exec discard unwatch script|load"
RQ_COMMANDS = (
    "+@read +@write -@keyspace -@dangerous +del +exists +expire +persist +pttl +ttl +type +unlink +watch +eval +evalsha"
)
RQ_CHANNELS = "+subscribe +unsubscribe +publish"
"""RQ drives batch files, on keys of its own: what it sends there is its own matter, and changes with its version."""

ROLES: Mapping[str, tuple[Grants, Sequence[str]]] = {
    "producer": (PRODUCER, ["info", "wait"]),
    "scheduler": (SCHEDULER, ["info"]),
    "worker": (WORKER, ["info"]),
    "batch": (together(PRODUCER, BATCHING), ["info", "wait", *RQ_TRANSACTIONS.split()]),
    "reader": (WATCHING, ["info"]),
    # Looks at all keys' names, and has a changed file of users loaded.
    "admin": (ADMIN, ["info", "config|get", "scan", "acl|load", "acl|log"]),
}
"""What a role may do to keys, and the commands without a key that it needs beside those of everybody."""

SCRIPTING = ("producer", "scheduler", "worker", "batch", "admin")


def selectors(role: str) -> list[tuple[str, str]]:
    """Return what a role is granted as pairs of commands and keys, each command in one pair."""
    grants, _ = ROLES[role]
    keys: defaultdict[str, list[str]] = defaultdict(list)
    for key, commands in grants.items():
        for command in commands.split():
            keys[command].append(key)
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for command, places in sorted(keys.items()):
        alike[tuple(places)].append(command)
    found = [(" ".join(commands), " ".join(places)) for places, commands in alike.items()]
    return ([("eval evalsha", "")] if role in SCRIPTING else []) + found


def line(role: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a role's line for Redis 7: nobody may log in as it before a password is set."""
    bare = [f"+{command}" for command in (*ANYBODY.split(), *ROLES[role][1])]
    groups = [
        f"({' '.join(f'+{command}' for command in commands.split())} "
        f"{' '.join(f'~{PREFIX}{key}' for key in (places.split() or ['']))})"
        for commands, places in pairs
    ]
    of_rq = [f"({RQ_COMMANDS} ~rq:*) ({RQ_CHANNELS} &rq:*)"] if role == "batch" else []
    return " ".join([f"user stoker-{role} off resetchannels -@all", *bare, *groups, *of_rq])


def plain_line(role: str) -> str:
    """Return a role's line for Redis 6.2: the same commands, but each on all keys of Stoker."""
    commands = {command for pair in selectors(role) for command in pair[0].split()}
    bare = [*ANYBODY.split(), *ROLES[role][1], *sorted(commands)]
    of_rq = [f"~rq:* &rq:* {RQ_COMMANDS} {RQ_CHANNELS}"] if role == "batch" else []
    allowed = [f"~{PREFIX}*", *of_rq, *(f"+{command}" for command in bare)]
    return " ".join([f"user stoker-{role} off resetchannels -@all", *allowed])


def files() -> dict[str, str]:
    """Return the text of each file, by its name. Nobody comes in as `default`."""
    closed = "user default off resetchannels -@all"
    lines = {
        "users.acl": [line(role, selectors(role)) for role in ROLES],
        "users-6.2.acl": [plain_line(role) for role in ROLES],
    }
    return {name: "\n".join([closed, *users]) + "\n" for name, users in lines.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text)
