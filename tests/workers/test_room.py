"""How much a worker takes after its engine ran out of memory, which rows it keeps, and which errors mean that."""

from __future__ import annotations

import pytest

from stoker.request import InferenceRequest
from stoker.store.codec import Payload
from stoker_workers.engine import OutOfMemory, Work
from stoker_workers.engine_faults import is_out_of_memory, is_sticky, telling_memory
from stoker_workers.intake import Row
from stoker_workers.room import CALM_MOST_S, CALM_S, Room, part


class OutOfMemoryError(RuntimeError):
    """As torch calls it; its CUDA error has the same name."""


class AcceleratorError(RuntimeError):
    """As newer versions of torch call errors of a device."""


def rows(count: int, *, tokens: int = 0, published: int = 0) -> list[Row]:
    return [
        Row(
            Payload(str(i), "n", published > 0, 1, 1, InferenceRequest(inputs=i)),
            "d",
            Work(id=str(i), batch="d"),
            0.0,
            token_ids=list(range(tokens)),
            texts=["x"] * tokens,
            tokens=tokens,
            published=published,
            first_token_us=7 if tokens else -1,
        )
        for i in range(count)
    ]


def ids(some: list[Row]) -> str:
    return "".join(row.payload.id for row in some)


# --- the room ---------------------------------------------------------------------------------------------------------


def test_half_of_what_the_step_held_is_left() -> None:
    room = Room(1000, "paged")
    room.shrink([100, 100, 100, 100], 0)
    assert (room.tokens, room.reduced) == (200, True)


def test_a_rectangle_counts_its_longest_row_for_each() -> None:
    room = Room(1000, "rect")
    room.shrink([50, 100, 50, 50], 0)
    assert room.tokens == 200
    assert room.takes([100], 90)
    assert not room.takes([60, 60], 70)


def test_the_largest_row_of_the_step_still_fits_alone() -> None:
    room = Room(1000, "paged")
    room.shrink([10, 300, 10], 0)
    assert room.tokens == 300


def test_the_whole_room_is_back_step_by_step_and_not_before_it_was_calm() -> None:
    room, now, seen = Room(1000, "paged"), 0.0, []
    room.shrink([300, 300], now)
    assert not room.grow(now + CALM_S - 0.1)
    while room.reduced:
        now += CALM_S
        assert room.grow(now)
        assert not room.grow(now + CALM_S - 0.1)
        seen.append(room.tokens)
    assert seen == [375, 468, 585, 731, 913, 1000]
    assert not room.grow(now + 1000)


def test_each_time_it_runs_out_again_it_waits_twice_as_long_up_to_a_limit_and_forgets_when_all_was_back() -> None:
    room, now = Room(1000, "paged"), 0.0
    waits = []
    for _ in range(6):
        room.shrink([500, 400], now)
        before = now
        while not room.grow(now):
            now += 1
        waits.append(now - before)
    assert waits == [CALM_S, 2 * CALM_S, 4 * CALM_S, CALM_MOST_S, CALM_MOST_S, CALM_MOST_S]
    while room.reduced:
        now += CALM_MOST_S
        room.grow(now)
    room.shrink([500, 400], now)
    assert room.grow(now + CALM_S)


def test_a_reduced_room_takes_no_more_than_it_has_and_always_one() -> None:
    room = Room(1000, "paged")
    assert room.takes([900], 900), "what the engine can hold is for the engine to say"
    room.shrink([100] * 4, 0)
    assert room.takes([100], 100)
    assert not room.takes([100], 101)
    assert room.takes([], 900)


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_the_first_half_of_a_step_stays_and_all_others_go() -> None:
    parted = part(rows(7), ["1", "2", "3", "4", "5"], resumes=True)
    assert (ids(parted.ran), ids(parted.kept), ids(parted.back), parted.alone) == ("12345", "12", "03456", False)


def test_the_only_row_of_a_step_is_too_large_and_the_others_stay() -> None:
    parted = part(rows(3), ["1"], resumes=True)
    assert (ids(parted.ran), ids(parted.kept), ids(parted.back), parted.alone) == ("1", "02", "", True)


def test_an_engine_that_names_no_row_blames_all() -> None:
    parted = part(rows(4), [], resumes=True)
    assert (ids(parted.kept), ids(parted.back)) == ("01", "23")


def test_rows_go_on_behind_their_tokens_where_the_engine_can() -> None:
    (kept,) = part(rows(2, tokens=3, published=2), ["0", "1"], resumes=True).kept
    assert (kept.work.generated, kept.token_ids, kept.tokens) == ([0, 1, 2], [0, 1, 2], 3)


def test_rows_begin_anew_where_the_engine_can_not() -> None:
    (kept,) = part(rows(2, tokens=3), ["0", "1"], resumes=False).kept
    assert (kept.work.generated, kept.token_ids, kept.texts, kept.tokens, kept.first_token_us) == ((), [], [], 0, -1)


def test_a_stream_that_was_read_cannot_begin_anew_here() -> None:
    parted = part(rows(2, tokens=3, published=2), ["0", "1"], resumes=False)
    assert (ids(parted.kept), ids(parted.back)) == ("", "01")


# --- the errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        MemoryError(),
    ],
)
def test_errors_for_want_of_memory_are_told_as_one(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_sticky(error)
    with pytest.raises(OutOfMemory, match=type(error).__name__), telling_memory():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
        AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuBLAS error: CUBLAS_STATUS_EXECUTION_FAILED"),
    ],
)
def test_errors_after_which_a_device_is_of_no_more_use_are_known(error: Exception) -> None:
    assert is_sticky(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), RuntimeError("a wrong shape"), KeyError("illegal memory access")]
)
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    assert not is_sticky(error)
    with pytest.raises(type(error)), telling_memory():
        raise error
