"""A random Llama with a real tokenizer, and what tests of the torch engine do with it."""

from __future__ import annotations

import functools
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import answers
from stoker_workers.engines.torch import TorchEngine

VOCABULARY = 512
CONTEXT = 256
EOS = 2
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    # Large weights, so that answers are varied instead of one token for ever.
    "initializer_range": 0.3,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train byte-level BPE on text that is in every Python."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics.topics["strings"], topics.topics["assignment"]], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def make_llama(path: Path) -> Path:
    """Write a random Llama with a tokenizer to a folder."""
    # As the engine does for small models: what transformers computes here must not wait for neighbours either.
    torch.set_num_threads(1)
    torch.manual_seed(11)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def load(folder: Path, **options: Any) -> TorchEngine:
    engine = TorchEngine(folder, **options)
    engine.load()
    return engine


prompts = functools.partial(answers.prompts, vocabulary=VOCABULARY)
"""Random prompts for this model."""
