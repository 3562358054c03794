"""Every setting, in one frozen object that is passed whole.

Each field can be set by an argument, else by an environment variable `STOKER_<FIELD>`, else in the file that
`STOKER_CONFIG` names; the unit is the last word of the name.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from stoker.config_file import VARIABLE, config_path, read_config_file
from stoker.errors import ConfigError, InvalidRequest, shorten
from stoker.shards import MOST_SHARDS, TAG_ROOM, shard_of, tag_of

LONGEST_NAME = 128
NAME = re.compile(rf"[A-Za-z0-9._~-]{{1,{LONGEST_NAME}}}")
"""What an id, a tenant, a queue or a worker may be called: it stands between `:` and `|` in Redis."""

MIB = 1024 * 1024
LARGEST_PAYLOAD = 256 * MIB
ENV_PREFIX = "STOKER_"
LEASE_BEATS = 3.3
LEADER_BEATS = 3
MOST_BY_UNIT = {"s": 10 * 365 * 86_400, "ms": 86_400_000}
MOST = 1 << 50
"""The most that any setting may be, by its unit: what is larger is not exact in a script, or no TTL for Redis."""


class Config(BaseSettings):
    """The settings that clients, scheduler and workers of one queue share.

    Raises `ConfigError` with one line a problem when a value cannot work.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    redis_url: str | None = Field(
        None,
        description="redis(s)://, unix://, redis+sentinel:// or redis+cluster:// URL; unset: the stack that runs here",
    )
    queue: str = Field("default", description="the queue's name, [A-Za-z0-9._~-]{1,128}")
    shards: int = Field(
        1,
        ge=1,
        le=MOST_SHARDS,
        description="parts of the queue, for nodes of a Redis Cluster; the same for a queue",
    )
    shard: int | None = Field(
        None,
        ge=0,
        description="the part that this process serves or looks at, from 0; unset: all, a worker's where fewest are",
    )
    state: Path | None = Field(None, description="the folder of the local stack; unset: XDG_STATE_HOME/stoker")
    redis_server: str | None = Field(None, description="the server binary of the local stack; unset: looked for")

    heartbeat_ms: int = Field(1000, ge=20, le=60_000, description="H: how often a worker beats; the same for a queue")

    max_waiting: int = Field(1_000_000, ge=1, description="requests that may wait in the queue")
    max_waiting_bytes: int = Field(2048 * MIB, ge=1, description="bytes that may wait; never over half of maxmemory")
    max_waiting_tokens: int | None = Field(
        None, ge=1, description="tokens (prompt and max_tokens) that may wait; unset: any number"
    )
    max_stored_bytes: int | None = Field(
        None, ge=1, description="bytes of what waits and of the results that are kept; unset: any number"
    )
    tenant_max_waiting: int | None = Field(
        None, ge=1, description="requests that may wait of one tenant, unless it has a limit of its own; unset: any"
    )
    tenant_max_tokens: int | None = Field(
        None, ge=1, description="tokens that may wait of one tenant, unless it has a limit of its own; unset: any"
    )
    tenant_max_bytes: int | None = Field(
        None, ge=1, description="bytes of one tenant's waiting requests and kept results, likewise; unset: any"
    )
    max_age_s: int = Field(86_400, ge=1, description="the longest time to live of any request")
    unschedulable_s: float = Field(600, gt=0, description="how long what no worker could hold waits before it fails")
    max_attempts: int = Field(3, ge=1, le=100, description="failures charged to a request before it is a dead letter")
    max_losses: int = Field(10, ge=4, le=1000, description="workers lost while running a request before it fails")
    backoff_min_ms: int = Field(500, ge=1, description="cap of the first retry's random delay; doubles each time")
    backoff_max_ms: int = Field(30_000, ge=1, description="the longest delay of a retry")

    payload_bytes: int = Field(1 * MIB, ge=1024, le=LARGEST_PAYLOAD, description="the largest encoded request")
    result_bytes: int = Field(4 * MIB, ge=1024, le=256 * MIB, description="the largest encoded result")
    wakeup_bytes: int = Field(4096, ge=0, description="the largest result carried inside a wake-up")
    result_ttl_s: float = Field(3600, ge=1, description="how long a result can be read")
    dead_ttl_s: float = Field(7 * 86_400, ge=1, description="how long a dead letter is kept")
    reply_ttl_s: float = Field(600, ge=1, description="how long unread wake-ups are kept")
    reply_len: int = Field(10_000, ge=16, description="wake-ups that may lie unread for one client")
    tokens_ttl_s: float = Field(600, ge=1, description="how long an ended token stream can be read")
    events: bool = Field(False, description="write the history of all transitions to the stream `events`")
    events_len: int = Field(100_000, ge=1, description="entries of the history that are kept, about")
    group: int = Field(512, ge=1, le=512, description="requests that one script call moves at most")

    window_normal_s: float = Field(60, ge=0, description="W[normal]: how long later higher classes may pass a request")
    window_low_s: float = Field(600, ge=0, description="W[low]")
    window_batch_s: float = Field(3600, ge=0, description="W[batch]")
    critical_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the dispatched tokens that CRITICAL may take first, and from running requests",
    )
    reserve: Literal["full", "expected"] = Field(
        "full",
        description="room in the cache: max_tokens, or what 80 % of answers need, by class and tenant (torch, sim)",
    )
    reserve_idle_s: float = Field(
        60, ge=0, description="how long after the last request of another class BATCH leaves it room; 0: leaves none"
    )
    batch_slowdown: float = Field(
        0.24, ge=0, le=100, description="how much longer rows of BATCH may make a step while it leaves room, as a share"
    )
    batch_prefill_tokens: int = Field(
        64, ge=1, description="prompt tokens of BATCH that a worker takes up a step, on average, while it leaves room"
    )
    preempt_ms: int = Field(1000, ge=0, description="how long what was preempted runs undisturbed; doubles each time")
    scan_workers: int = Field(
        64, ge=2, description="of more workers, a request looks at two that are drawn by chance, not at all"
    )
    affinity_slack_ms: float = Field(
        500, ge=0, description="how much later a request may be done at a worker that its affinity_key prefers"
    )
    affinity_key_bytes: int = Field(256, ge=1, le=4096, description="the longest affinity_key of a request")
    ahead_ms: int = Field(
        50, ge=0, le=60_000, description="a worker takes requests ahead that it begins within this time, on average"
    )
    max_queue_delay_ms: int = Field(50, ge=0, description="how long a padded batch may wait to become fuller")

    breaker_faults: int = Field(5, ge=1, description="worker faults within the window that open its circuit")
    breaker_window_s: float = Field(60, gt=0, description="the window in which worker faults are counted")
    breaker_open_s: float = Field(30, gt=0, description="how long a circuit stays open at first; doubles each time")
    breaker_successes: int = Field(2, ge=1, description="successes of a half-open circuit that close it")
    slow_factor: float = Field(2, gt=1, description="how many times as slow as its peers a worker is left out")

    block_ms: int = Field(1000, ge=10, le=2000, description="the longest a blocking read waits in Redis")
    connect_timeout_s: float = Field(2, gt=0, description="deadline of one attempt to connect")
    socket_timeout_s: float = Field(5, gt=0, description="deadline of one reply")
    retry_timeout_s: float = Field(10, ge=0, description="how long a client repeats a call that Redis did not answer")
    durability_timeout_s: float = Field(
        2, gt=0, le=5, description="how long a submit waits for the durability that it asks for"
    )
    in_flight: int = Field(4096, ge=1, description="requests that map() keeps in flight")
    flush_ms: int = Field(50, ge=1, description="the interval at which streamed tokens are published")
    load_timeout_s: float = Field(600, gt=0, description="limit of loading and warming up a model")
    hung_s: float | None = Field(
        None, gt=0, description="how long a model may stand still; unset: 60 s, without end for a class of your own"
    )
    drain_timeout_s: float = Field(30, ge=0, description="how long a stopping worker may finish what it runs")

    metrics: bool = Field(True, description="whether scheduler and workers serve /metrics, /healthz and /readyz")
    metrics_host: str = Field("127.0.0.1", description="the address that they serve them on")
    metrics_port: int = Field(
        9465, ge=0, le=65_400, description="the scheduler's port; workers take the first free behind it; 0: any free"
    )

    batch_redis_url: str | None = Field(
        None, description="Redis of RQ, which runs batch files; unset: redis_url. Needed where that is a cluster"
    )
    batch_root: Path | None = Field(
        None, description="the folder in which batch workers read and write files, and nowhere else; unset: anywhere"
    )
    batch_ttl_s: float = Field(7 * 86_400, ge=60, description="how long an ended batch file is remembered")
    batch_window_s: float = Field(86_400, gt=0, le=30 * 86_400, description="time that a batch file has by default")
    batch_in_flight: int = Field(4096, ge=1, le=100_000, description="requests that one batch file keeps in flight")
    batch_store: Literal["folder", "redis"] = Field(
        "folder", description="where batch files lie: in a folder that batch workers share, or in Redis"
    )
    batch_store_bytes: int = Field(
        256 * MIB, ge=MIB, le=512 * MIB, description="how much one batch may keep in Redis: its input and its answers"
    )
    batch_line_bytes: int = Field(4 * MIB, ge=1024, le=256 * MIB, description="the longest line of a batch file")

    if not TYPE_CHECKING:  # which knows the fields better than this signature does

        def __init__(self, **values: object) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigError("\n".join(_problems(error, values))) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where values come from, the first of them wins."""
        # A whole set, as a worker's child gets it, is asked of nobody else: the file may have changed meanwhile.
        if init_settings().keys() >= cls.model_fields.keys():
            return (init_settings,)
        path = config_path()
        return (
            init_settings,
            env_settings,
            *([InitSettingsSource(settings_cls, read_config_file(path))] if path else []),
        )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be true or false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _bound(cls, value: object, info: ValidationInfo) -> object:
        most = MOST_BY_UNIT.get(str(info.field_name).rpartition("_")[2], MOST)
        if isinstance(value, int | float) and value > most:
            raise ValueError(f"must be at most {most}")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if not NAME.fullmatch(self.queue):
            problems.append(f"queue: must match {NAME.pattern}, got {self.queue!r}")
        elif self.shards > 1 and len(self.queue) > LONGEST_NAME - TAG_ROOM:
            most = LONGEST_NAME - TAG_ROOM
            problems.append(f"queue: must have at most {most} characters with shards over 1, got {len(self.queue)}")
        if self.shard is not None and self.shard >= self.shards:
            problems.append(f"shard: must be under shards ({self.shards}), got {self.shard}")
        pairs = (
            ("backoff_min_ms", "backoff_max_ms"),
            ("window_normal_s", "window_low_s"),
            ("window_low_s", "window_batch_s"),
        )
        for low, high in pairs:
            if getattr(self, low) > getattr(self, high):
                problems.append(f"{low}: must be at most {high} ({getattr(self, high)}), got {getattr(self, low)}")
        if self.block_ms / 1000 >= self.socket_timeout_s:
            problems.append(
                f"block_ms: must be under socket_timeout_s ({self.socket_timeout_s:g} s), got {self.block_ms}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def spread(self) -> bool:
        """Whether this means all of several shards."""
        return self.shards > 1 and self.shard is None

    @property
    def tag(self) -> str:
        """The hash tag of all keys: the queue's name, or that of the shard; raises `ConfigError` for all shards."""
        return tag_of(self.queue, self.shards, self.one_shard)

    @property
    def one_shard(self) -> int:
        """The shard; raises `ConfigError` for all of several."""
        if self.shard is None and self.shards > 1:
            raise ConfigError(
                f"shard: this looks at one of the {self.shards} shards of queue {self.queue!r};"
                f" say at which, with --shard or STOKER_SHARD (0 to {self.shards - 1})"
            )
        return self.shard or 0

    def of(self, shard: int) -> Config:
        """Return the settings of one shard; of a queue of one shard they are these."""
        return self if self.shards == 1 else self.model_copy(update={"shard": shard})

    def check_shard(self, request_id: str) -> str:
        """Return an id; raises `InvalidRequest` for one that belongs to another shard than these settings name."""
        if self.shards > 1 and (theirs := shard_of(request_id, self.shards)) != self.shard:
            raise InvalidRequest("request_id", f"must belong to shard {self.shard}, not to {theirs}", request_id)
        return request_id

    def check_batches(self) -> None:
        """Raise `ConfigError` where files of requests cannot run: on one of several shards."""
        if self.shards > 1 and self.shard is not None:
            raise ConfigError(f"shard: batch files run on all shards of a queue; leave it out, got {self.shard}")

    @property
    def home(self) -> Config:
        """The settings of the first shard, which keeps what a queue has one of."""
        return self.of(0)

    def each(self) -> list[Config]:
        """Return the settings of each shard that these mean."""
        return [self.of(shard) for shard in range(self.shards)] if self.spread else [self]

    def of_id(self, request_id: str) -> Config:
        """Return the settings of the shard that a request belongs to, unless these name one."""
        return self.of(shard_of(request_id, self.shards)) if self.spread else self

    @property
    def lease_us(self) -> int:
        """T: how long a worker may be silent before its work is taken back, in microseconds."""
        return int(self.heartbeat_ms * 1000 * LEASE_BEATS)

    @property
    def leader_lease_us(self) -> int:
        """L: how long a leader may be silent before another takes over, in microseconds."""
        return self.heartbeat_ms * 1000 * LEADER_BEATS


def load_config(**overrides: object) -> Config:
    """Return the settings of environment and file with `overrides` (None means: not given) on top.

    Raises `ConfigError` with one line a problem; an unknown `STOKER_` variable names the nearest known one.
    """
    variables = [name for name in os.environ if name.startswith(ENV_PREFIX) and name != VARIABLE]
    known = [ENV_PREFIX + field.upper() for field in Config.model_fields]
    problems = [_unknown(name, name, [*known, VARIABLE]) for name in variables if name.upper() not in known]
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        config = Config(**given)  # type: ignore[arg-type]  # values of any type are what pydantic validates
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def environment_of(config: Config) -> dict[str, str]:
    """Return the settings as the environment of a process; never as arguments, which everybody can read."""
    given = config.model_dump(mode="json", include=set(config.model_fields_set), exclude_none=True)
    return {**os.environ, **{ENV_PREFIX + name.upper(): str(value) for name, value in given.items()}}


def origins() -> dict[str, str]:
    """Return where each setting comes from that is set outside of the program: `environment`, or the file's path."""
    path = config_path()
    of_file = dict.fromkeys(read_config_file(path), str(path)) if path else {}
    return of_file | {name.upper().removeprefix(ENV_PREFIX).lower(): "environment" for name in os.environ}


def check_name(field: str, value: object) -> str:
    """Return `value` when it may stand in a key; raises `InvalidRequest` naming the field otherwise."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise InvalidRequest(field, f"must match {NAME.pattern}", value)
    return value


def _problems(error: ValidationError, given: Collection[str]) -> Iterable[str]:
    """Give one line a problem: the setting by the name that it has where it was set, what is wrong, and its value."""
    outside = origins()

    def named(name: str) -> str:
        origin = "" if name in given else outside.get(name, "")
        variable = ENV_PREFIX + name.upper()
        return variable if origin == "environment" else f"{origin}: {name}" if origin else name

    for item in error.errors():
        text = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:
            for line in text.splitlines():
                name, _, rest = line.partition(": ")
                yield f"{named(name)}: {rest}"
            continue
        name = str(item["loc"][0])
        if item["type"] == "extra_forbidden":
            yield _unknown(named(name), name, Config.model_fields)
        else:
            yield f"{named(name)}: {text}, got {shorten(item['input'])}"


def _unknown(shown: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:100], known, n=1)
    return f"{shown[:200]}: unknown setting" + (f"; did you mean {near[0]}?" if near else "; see `stoker config show`")
