"""Every error that Stoker raises.

::

    StokerError
        ConfigError                         a setting cannot work; one line a problem
        InvalidRequest (ValueError)         field, limit, value
            UnsupportedParameter            this model's engine does not honour the parameter
            PayloadTooLarge                 the encoded request is over its limit
        IdempotencyConflict                 the id is taken by a request with other content
        ModelMismatch                       the queue serves another model
        QueueFull                           retry_after, in seconds; field, limit, value
            NoWorkers                       and no worker is alive, so that nothing drains
        DeadlineInfeasible                  timeout and estimate, in seconds
        DurabilityNotReached                job: it was accepted, but not as durably as asked
        RedisUnavailable (ConnectionError)  what was tried, and since when
        ResultTimeout (TimeoutError)        the request goes on; ask again by its id
        RequestError                        request_id
            RequestFailed                   reason, attempts
                RequestDisplaced            retry_after: a better request took its place in a full queue
            RequestExpired
            RequestCancelled
            RequestLost                     the server came back without the request
"""

from __future__ import annotations

from typing import Any


class StokerError(Exception):
    """The root of all errors of this package."""


class ConfigError(StokerError):
    """A setting that cannot work; the message has one line a problem."""


class InvalidRequest(StokerError, ValueError):
    """A request that can never run; it names the field, its limit and what was given."""

    def __init__(self, field: str, limit: str, value: object = None) -> None:
        """Name the `field`, the `limit` it breaks and the `value` given (shortened in the message)."""
        self.field = field
        self.limit = limit
        self.value = value
        super().__init__(f"{field}: {limit}, got {shorten(value)}")


class UnsupportedParameter(InvalidRequest):
    """A parameter that the model's engine does not honour."""


class PayloadTooLarge(InvalidRequest):
    """The encoded request is over its limit in bytes."""


class IdempotencyConflict(StokerError):
    """The request id is taken by a live or finished request with other content."""

    def __init__(self, request_id: str) -> None:
        """Name the id that is taken."""
        self.request_id = request_id
        super().__init__(f"request id {request_id!r} is taken by a request with other content; use a new id")


class ModelMismatch(StokerError):
    """The queue serves another model than the one at hand."""


class QueueFull(StokerError):
    """A limit of the queue, or of the request's tenant, is reached: overloaded; try again after `retry_after` seconds.

    `field` names the setting, `limit` is what it allows, `value` what it would have come to with this request.
    """

    def __init__(self, queue: str, retry_after: float, *, field: str, limit: int, value: int) -> None:
        """Name the queue and the limit; `retry_after` (seconds) comes from its measured drain rate."""
        self.queue = queue
        self.retry_after = retry_after
        self.field = field
        self.limit = limit
        self.value = value
        who = f"the request's tenant is at a limit in queue {queue!r}" if self.of_tenant else f"queue {queue!r} is full"
        super().__init__(f"{who}; {self._remedy()} ({field}: at most {limit:,}, got {value:,})")

    @property
    def of_tenant(self) -> bool:
        """Whether the limit is one of the request's tenant: the queue has room for others."""
        return self.field.startswith("tenant_")

    def _remedy(self) -> str:
        return f"try again in {self.retry_after:.1f} s, or submit with block=True"


class NoWorkers(QueueFull):
    """The queue is full and no worker is alive: nothing drains until one is started."""

    def _remedy(self) -> str:
        return "no worker is alive, start one with `stoker worker`"


class DeadlineInfeasible(StokerError):
    """The request would not be finished within its `timeout`: by the fleet's measured rate it takes `estimate` s."""

    def __init__(self, request_id: str, timeout: float, estimate: float) -> None:
        """Name the request, its time to live and how long it would take, in seconds."""
        self.request_id = request_id
        self.timeout = timeout
        self.estimate = estimate
        super().__init__(
            f"timeout: request {request_id!r} would take about {estimate:.1f} s, got {timeout:g}; give it more time, a"
            " higher class, or check_deadline=False"
        )


class DurabilityNotReached(StokerError):
    """The request was accepted, but not as durably as asked; `job` is its handle."""

    def __init__(self, job: Any, wanted: str, reached: str) -> None:
        """Carry the accepted `job`, the level `wanted` and the one `reached`."""
        self.job = job
        super().__init__(f"request {job.id!r} was accepted with durability {reached!r}, not {wanted!r}")


class RedisUnavailable(StokerError, ConnectionError):
    """Redis cannot be reached, or refuses for now; the message says what was tried and since when."""


class ResultTimeout(StokerError, TimeoutError):
    """No result within the time asked; the request goes on and can be asked for by its id."""

    def __init__(self, request_id: str, timeout: float) -> None:
        """Name the request and the seconds waited."""
        self.request_id = request_id
        super().__init__(f"request {request_id!r} has no result after {timeout:g} s; it goes on, ask again by its id")


class RequestError(StokerError):
    """The request ended without a result."""

    def __init__(self, request_id: str, message: str) -> None:
        """Name the request and say how it ended."""
        self.request_id = request_id
        super().__init__(f"request {request_id!r} {message}")


class RequestFailed(RequestError):
    """The request failed; `reason` is a word or a sentence, `attempts` counts its begins."""

    def __init__(self, request_id: str, reason: str, attempts: int) -> None:
        """Say why the request failed and after how many attempts."""
        self.reason = reason
        self.attempts = attempts
        super().__init__(request_id, f"failed after {attempts} attempt(s): {reason}")


class RequestDisplaced(RequestFailed):
    """The request, submitted as sheddable, gave its place in a full queue to a better one; submit it again later."""

    def __init__(self, request_id: str, retry_after: float) -> None:
        """Name the request; `retry_after` (seconds) comes from the queue's measured drain rate."""
        self.retry_after = retry_after
        super().__init__(request_id, "displaced", 0)
        self.args = (f"request {request_id!r} was displaced by a better one; submit it again in {retry_after:.1f} s",)


class RequestExpired(RequestError):
    """The request's time to live ran out before it finished."""

    def __init__(self, request_id: str) -> None:
        """Name the request."""
        super().__init__(request_id, "expired: its time to live ran out before it finished")


class RequestCancelled(RequestError):
    """The request was cancelled."""

    def __init__(self, request_id: str) -> None:
        """Name the request."""
        super().__init__(request_id, "was cancelled")


class RequestLost(RequestError):
    """Redis does not know the request (it came back empty, or its result expired); submit it again under its id."""

    def __init__(self, request_id: str) -> None:
        """Name the request."""
        super().__init__(request_id, "is unknown to Redis: never submitted, expired from it, or lost by it")


def shorten(value: object, limit: int = 80) -> str:
    """Return `repr(value)` cut to `limit` characters, so that no prompt ends up in a log whole."""
    text = f"{len(value):,} {type(value).__name__} items" if isinstance(value, list | dict) else _shown(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # an integer of 5,000 digits has none, and a user's class may raise anything
        return f"a {type(value).__name__}"
