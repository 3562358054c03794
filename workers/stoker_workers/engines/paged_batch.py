"""transformers' continuous batching, driven one step at a time and without its thread.

What it calls there is no stable interface. So all of that is in this module, and only the versions that its tests ran
on are let in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from stoker.errors import ConfigError
from stoker_workers.engines.continuous import prefill_chunks
from stoker_workers.engines.pretrained import first_line, limit_threads, load_causal_model
from stoker_workers.engines.torch_model import DTYPES

if TYPE_CHECKING:
    from stoker_workers.engines.ranks import Followers

TESTED = ("5.24",)
"""The minor versions of transformers whose batch processor is known to work as it is driven here."""

RANK_TIMEOUT_S = 120.0
"""How long a rank waits for the others in one exchange: a rank that hangs must not hang its group for ever."""

Choose = Callable[[torch.Tensor, Sequence[str], Sequence[int]], list[int]]
"""From logits [rows, vocabulary], the rows' ids and the positions of the tokens to choose, to those tokens."""

_CPU_CACHE_BYTES = 1 << 30
_GPU_CACHE_SHARE = 0.7  # of the memory that is free beside the weights; the rest is for activations and logits
_UNBOUNDED_CONTEXT = 8192  # what sizes the cache of a model that names no context
_PAGE_TOKENS = 16
_FLASH_PAGE_TOKENS = 256  # what the flash kernels read in one go
_CHECK_TOKENS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedOptions:
    """How to make the batch; every rank of a group gets the same. `cache_tokens` None is sized from the memory."""

    path: str
    device: str
    dtype: str
    context: int
    rows: int
    budget: int
    cache_tokens: int | None = None
    ranks: int = 1


class PagedBatch:
    """A model, a paged cache, and the sequences that grow in it; a step is one forward over all of them.

    The batch of a group's first rank takes its `followers` along: they hear what joins and leaves before each step, and
    get the tokens that were chosen here.
    """

    def __init__(self, options: PagedOptions, followers: Followers | None = None) -> None:
        """Load the model; raises `ConfigError` with what to do when it cannot run this way."""
        _check_version()
        device = torch.device(options.device)
        attention = _attention(device)
        sharding = _sharding(options.ranks)
        self._model = load_causal_model(Path(options.path), DTYPES[options.dtype], attention, **sharding)
        if not sharding:
            self._model.to(device)
        self._model.requires_grad_(False)
        limit_threads(self._model, device)
        self._followers = followers
        self._orders: list[list[Any]] = []
        self.vocabulary = int(self._model.get_input_embeddings().weight.shape[0])
        try:
            # Before the batch exists, for the model is the batch's alone from then on.
            self.reference = _reference(self._model, self.vocabulary)
            self._manager = _make_manager(self._model, options, attention)
        except ConfigError:
            raise
        except MemoryError as error:
            raise ConfigError(f"kv_cache_tokens, max_num_batched_tokens: more than memory allows ({error})") from error
        except Exception as error:  # whatever a model's own code raises: it cannot be run this way
            refusal = f"model: {options.path} cannot be run by transformers-cb ({first_line(error)})"
            raise ConfigError(f"{refusal}; try --engine torch") from error
        self._processor = self._manager.batch_processor
        self._runner = _Runner.instead_of(self._processor)
        cache = self._processor.cache
        page = self._manager.continuous_batching_config.page_size
        self._sector_tokens: int = cache.num_blocks * page // cache.num_sectors
        self.tokens = cache.num_sectors * self._sector_tokens
        """What the cache holds."""

    @property
    def model(self) -> Any:
        """The module; no one else may run it while the batch exists."""
        return self._model

    def cost(self, tokens: int) -> int:
        """Return how many tokens of the cache a sequence of that length takes, in whole blocks."""
        sectors: int = sum(
            math.ceil(allocator.needs_new_blocks("", 0, tokens) / allocator.blocks_per_sector)
            for allocator in self._processor.cache.cache_allocators.values()
        )
        return sectors * self._sector_tokens

    def free_tokens(self) -> int:
        """Return the room left in the cache, in tokens."""
        return int(self._processor.cache.compute_free_capacity() * self.tokens)

    def add(self, request_id: str, tokens: list[int], max_tokens: int, eos: list[int]) -> None:
        """Let a sequence in; one of the next steps prefills it, and it leaves after `max_tokens` or one of `eos`."""
        state = RequestState(
            request_id=request_id, initial_tokens=tokens, max_new_tokens=max_tokens, eos_token_id=eos, streaming=False
        )
        self._processor.scheduler.add_waiting_request(state)
        self._note("add", request_id, tokens, max_tokens, eos)

    def drop(self, request_id: str) -> None:
        """Take a sequence out and free its blocks at once; unknown ids are ignored."""
        scheduler = self._processor.scheduler
        if request_id in scheduler.active_requests or request_id in scheduler.waiting_requests:
            scheduler.set_request_cancellation(request_id)
            scheduler.clear_cancelled_requests()
            self._note("drop", request_id)

    def apply(self, order: list[Any]) -> None:
        """Do what the first rank did."""
        kind, *arguments = order
        does: dict[str, Callable[..., None]] = {"add": self.add, "drop": self.drop}
        does[kind](*arguments)

    def next_ids(self) -> list[str]:
        """Return the sequences of the next step: those that decode, then prompts as far as the budget goes."""
        scheduler = self._processor.scheduler
        active = list(scheduler.active_requests.values())
        decoding = [state for state in active if state.status == RequestStatus.DECODING]
        filling = [state for state in active if state.status != RequestStatus.DECODING]
        filling += [scheduler.waiting_requests[name] for name in scheduler.waiting_requests_order]
        sizes = prefill_chunks(
            (len(state.remaining_prefill_tokens) for state in filling), self._processor.max_batch_tokens - len(decoding)
        )
        return [state.request_id for state in decoding + filling[: len(sizes)]]

    @torch.inference_mode()
    def step(self, choose: Choose | None = None) -> tuple[list[str], list[tuple[str, int]]]:
        """Run one forward; return the ids that were in it, and the new token of each whose prompt is whole.

        Every rank but the first goes without `choose`.
        """
        with self._followers.shared_fate() if self._followers else nullcontext():
            self._forward(choose)
        states = [future.state for future in self._runner.inputs_and_outputs.requests_in_batch]
        new = [(state.request_id, state.generated_tokens[-1]) for state in self._runner.with_new_token]
        return [state.request_id for state in states], new

    def _forward(self, choose: Choose | None) -> None:
        if self._followers:
            orders, self._orders = self._orders, []
            self._followers.tell(orders)
        self._runner.choose = choose
        if not self._processor.prepare_next_batch():
            raise RuntimeError("the batch has sequences, but none could be scheduled")
        self._processor._generation_step(self._model)
        self._processor.update_batch()

    def close(self) -> None:
        """End the followers and free the device."""
        self._manager.destroy()
        if self._followers:
            self._followers.close()

    def _note(self, *order: Any) -> None:
        if self._followers:
            self._orders.append(list(order))


class _Runner(ModelRunner):
    """Chooses the next tokens as all our engines do, row by row, where transformers would sample them all alike."""

    inputs_and_outputs: Any
    ranks: Any
    choose: Choose | None = None
    with_new_token: Sequence[RequestState] = ()

    @classmethod
    def instead_of(cls, processor: Any) -> _Runner:
        """Put a runner of this kind in the place of the processor's own."""
        own = processor.model_runner
        runner = cls(
            logit_processor=own.logit_processor,
            cb_config=own.cb_config,
            inputs_and_outputs=own.inputs_and_outputs,
            cache=own.cache,
            do_sample=False,
            return_logprobs=False,
        )
        runner.ranks = processor.distributed_helper
        processor.model_runner = runner
        return runner

    def _sample(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        states = [future.state for future in self.inputs_and_outputs.requests_in_batch if future.has_new_token]
        self.with_new_token = states
        if not states:
            return
        tokens = torch.zeros(len(states), dtype=output_ids.dtype, device=output_ids.device)
        if self.choose is not None:
            names = [state.request_id for state in states]
            chosen = self.choose(scores[0, : len(states)], names, [state.position_offset for state in states])
            tokens = torch.tensor(chosen, dtype=output_ids.dtype, device=output_ids.device)
        output_ids[0, : len(states)] = self.ranks.tp_broadcast_from_rank_0(tokens)


class _Discard(OutputRouter):
    """Answers are read off the batch after each step; kept in a queue that nobody reads, they would pile up."""

    def deliver(self, output: Any) -> None:
        """Forget it."""

    def deliver_batch(self, outputs: list[Any]) -> None:
        """Forget them."""


def _check_version() -> None:
    found = transformers.__version__
    if not found.startswith(tuple(f"{minor}." for minor in TESTED)):
        tested = " or ".join(f"{minor}.x" for minor in TESTED)
        raise ConfigError(
            f"engine: transformers-cb was tested with transformers {tested}, found {found}; use --engine torch"
        )


def _attention(device: torch.device) -> str:
    """Return the best implementation that is installed; none is fetched."""
    if device.type == "cuda" and is_flash_attn_3_available():
        return "flash_attention_3"
    if device.type == "cuda" and is_flash_attn_2_available():
        return "flash_attention_2"
    return "sdpa"


def _sharding(ranks: int) -> dict[str, Any]:
    if ranks == 1:
        return {}
    from transformers.distributed.configuration_utils import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=ranks)}


def _make_manager(model: Any, options: PagedOptions, attention: str) -> Any:
    page = _PAGE_TOKENS if attention == "sdpa" else _FLASH_PAGE_TOKENS
    tokens = options.cache_tokens or _default_cache_tokens(model, options, attention)
    if tokens < page:
        raise ConfigError(f"kv_cache_tokens: must be at least a page of {page} tokens, got {tokens}")
    config = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=tokens // page,
        max_batch_tokens=options.budget,
        max_requests_per_batch=options.rows,
        # With shared prefixes an answer would be computed in other pieces when another came before it.
        allow_block_sharing=False,
        # Both need tokens to be chosen on the device, inside the graph; ours are chosen row by row between steps.
        use_async_batching=False,
        use_cuda_graph=False,
        # Who may come in is decided by `admit`, which never lets the cache run full.
        safety_margin=0.0,
        # It would fetch kernels from elsewhere.
        auto_switch_to_flash=False,
        cpu_group_timeout=RANK_TIMEOUT_S,
        seed=0,
    )
    # Each request brings its own limits; these two must only be set.
    make: Any = GenerationConfig  # without types of its own
    generation = make(do_sample=False, max_new_tokens=1, eos_token_id=-1)
    manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
    manager.output_router = _Discard()
    manager.warmup()  # makes the batch processor; nothing is started
    return manager


def _default_cache_tokens(model: Any, options: PagedOptions, attention: str) -> int:
    """Return room for every row at full length, as far as the memory goes."""
    config = model.config.get_text_config(decoder=True)
    size: int = DTYPES[options.dtype].itemsize
    heads = max(1, find_num_key_value_heads(config) // options.ranks)
    bytes_per_token: int = 2 * config.num_hidden_layers * heads * find_head_dim(config) * size
    if attention == "sdpa":
        bytes_per_token += options.budget * size  # its mask has a column for each token of the cache
    memory = _CPU_CACHE_BYTES
    if model.device.type == "cuda":
        memory = int(torch.cuda.mem_get_info(model.device)[0] * _GPU_CACHE_SHARE)
    full = options.rows * (options.context or _UNBOUNDED_CONTEXT)
    page = _PAGE_TOKENS if attention == "sdpa" else _FLASH_PAGE_TOKENS
    return max(page, min(full + options.rows * page, memory // bytes_per_token))


@torch.inference_mode()
def _reference(model: Any, vocabulary: int) -> list[tuple[list[int], torch.Tensor]]:
    """Return two sequences, and the logits after each when the model runs it alone and without a cache."""
    numbers = [number % vocabulary for number in range(1, _CHECK_TOKENS + 1)]
    return [
        (ids, model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].float())
        for ids in (numbers, numbers[::-1][1:])
    ]
