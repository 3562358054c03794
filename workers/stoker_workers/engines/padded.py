"""What engines that run whole batches share: what waits, and which of it runs next, padded to its longest."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.errors import ConfigError
from stoker_workers.engine import Admitted, Capacity, Full, Work


class Batches:
    """What is resident, in batches as deliveries brought them: one runs, one more waits behind it.

    A delivery is one batch, unless its tokens turn out to be more than were estimated: then it is cut, in order of
    arrival, where rows x longest would exceed the budget. What costs more than the budget runs alone.
    """

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int, longest: int = 0) -> None:
        """Limit a batch in rows and in rows x longest; anything of up to `longest` tokens can be held."""
        if max_num_seqs < 1 or max_num_batched_tokens < 1:
            raise ConfigError("max_num_seqs and max_num_batched_tokens: must be at least 1")
        self._max_num_seqs = max_num_seqs
        self.capacity = Capacity(
            rows=2 * max_num_seqs,
            tokens=max(2 * max_num_batched_tokens, longest),
            budget=max_num_batched_tokens,
            cache="paged",
        )
        self._resident: dict[str, tuple[Work, int]] = {}
        self._occupied = 0

    def admit(self, work: Work, cost: int) -> Admitted | Full:
        """Take in a request of `cost` tokens, in the place of an earlier attempt at it."""
        self.drop(work.id)
        if len(self._resident) >= self.capacity.rows or self._occupied + cost > self.capacity.tokens:
            return Full()
        self._resident[work.id] = (work, cost)
        self._occupied += cost
        return Admitted(cost)

    def next(self) -> list[Work]:
        """Return the batch to run next; it stays resident."""
        batch: list[Work] = []
        longest = 0
        for work, cost in self._resident.values():
            if batch and work.batch != batch[0].batch:
                continue
            longest = max(longest, cost)
            too_large = (len(batch) + 1) * longest > self.capacity.budget
            if batch and (too_large or len(batch) == self._max_num_seqs):
                break
            batch.append(work)
        return batch

    def drop(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored."""
        _, cost = self._resident.pop(request_id, (None, 0))
        self._occupied -= cost

    def resident(self) -> Sequence[str]:
        """Return the ids of what is here, in order of arrival."""
        return list(self._resident)

    def clear(self) -> None:
        """Forget all."""
        self._resident.clear()
        self._occupied = 0
