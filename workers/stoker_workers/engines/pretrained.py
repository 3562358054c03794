"""What engines over a model folder share: its tokenizer, and its weights, without running code from the folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from stoker.errors import ConfigError, InvalidRequest

_SMALL_MODEL = 50_000_000  # parameters


class Tokenizer:
    """The tokenizer of a folder: texts and conversations to ids on one thread, ids to text on another."""

    def __init__(self, path: Path) -> None:
        """Load it; raises `ConfigError` with what is wrong with it."""
        self._decoder = load_tokenizer(path)
        # A second one, for reading a prompt changes a tokenizer's state while `decode` may use it on another thread.
        self._encoder = load_tokenizer(path)
        self._encoding = threading.Lock()
        self.eos_id: int | None = self._decoder.eos_token_id

    def encode(self, prompt: str) -> list[int]:
        """Return a text's token ids, with the special tokens that the model wants."""
        with self._encoding:
            return list(self._encoder(prompt)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return a conversation's token ids; raises `InvalidRequest` when the model's template does not allow it."""
        conversation = [dict(message) for message in messages]
        with self._encoding:
            if not self._encoder.chat_template:
                raise InvalidRequest("messages", "this model has no chat template; give a prompt", len(messages))
            try:
                text = self._encoder.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template refuses by raising, and may do so with any error
                raise InvalidRequest("messages", f"refused by the chat template ({error})", len(messages)) from error
            # The template wrote the special tokens itself.
            return list(self._encoder(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        text: str = self._decoder.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def load_causal_model(path: Path, dtype: torch.dtype, attention: str = "sdpa", **options: Any) -> Any:
    """Return the folder's language model, on the CPU unless `options` of `from_pretrained` say otherwise."""
    return load_weights(transformers.AutoModelForCausalLM, path, dtype, attention, **options)


def load_weights(
    auto: Any, path: Path, dtype: torch.dtype, attention: str = "sdpa", *, unused: str | None = None, **options: Any
) -> Any:
    """Return the folder's model by transformers' class `auto`; raises `ConfigError`, also when weights are missing.

    Those whose names begin with `unused` may be: what they compute is not looked at.
    """
    # Its own annotations leave out what silences the bar.
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    try:
        model, info = auto.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # from a dozen formats come a dozen kinds of error
        raise ConfigError(f"model: the weights in {path} cannot be loaded: {first_line(error)}") from error
    missing = sorted(key for key in info["missing_keys"] if unused is None or not key.startswith(unused))
    if missing:
        # transformers would only warn, and answer from random weights.
        raise ConfigError(f"model: {path} lacks the weights of {len(missing)} tensors, {missing[0]} for one")
    return model.eval()


def choose_in_float32(model: Any) -> None:
    """Let a model of half precision make its logits in float32.

    Rounded to 8 bits, those between 8 and 16 lie a sixteenth apart, and the first of two that tie is chosen. For CPUs:
    on a GPU each step would read the head's weights in twice the bytes.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.weight.dtype == torch.float32:
        return
    exact = torch.nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, dtype=torch.float32)
    exact.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    exact.register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))
    model.set_output_embeddings(exact)


def limit_threads(model: Any, device: torch.device) -> None:
    """Give a small model on a CPU one thread, unless the operator chose a number.

    Its operations are too short to share: with two busy neighbours on two cores, two threads made 150 tokens a second
    where one made 5,400, for they wait for each other at every operation; alone, the second thread gains a third.
    """
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and model.num_parameters() < _SMALL_MODEL:
        torch.set_num_threads(1)


def eos_ids(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids that end an answer: the generation config may name one or several."""
    ids = model.generation_config.eos_token_id
    if ids is None:
        ids = tokenizer.eos_id
    return frozenset([ids] if isinstance(ids, int) else ids or ())


def first_line(error: Exception) -> str:
    """Return an error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def load_tokenizer(path: Path) -> Any:
    """Return the folder's tokenizer as transformers has it; raises `ConfigError`."""
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise ConfigError(f"model: the tokenizer in {path} cannot be loaded: {first_line(error)}") from error
