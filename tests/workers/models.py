"""Random models small enough to be made in a test, written as folders that a worker serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2}
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
LABELS = {0: "joy", 1: "fear", 2: "calm"}


def make_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """One token a byte, between a begin and an end token, as encoders want their texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {**SPECIAL, **{letter: len(SPECIAL) + place for place, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **options
    )


def save(model: Any, folder: Path) -> Path:
    """Write a model and its tokenizer."""
    # Far from zero: with the usual start all texts would have nearly one vector.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_bert(folder: Path) -> Path:
    """Write a bare encoder of 64 positions."""
    torch.manual_seed(1)
    return save(BertModel(BertConfig(**SIZES, max_position_embeddings=64)), folder)


def make_roberta(folder: Path) -> Path:
    """Write an encoder that keeps the first two of its 66 positions to itself."""
    torch.manual_seed(2)
    return save(RobertaModel(RobertaConfig(**SIZES, max_position_embeddings=66)), folder)


def make_classifier(folder: Path, kind: str = "bert", **config: Any) -> Path:
    """Write a classifier of three labels, an encoder or a decoder."""
    torch.manual_seed(3)
    options = {**SIZES, "max_position_embeddings": 64, "id2label": LABELS, "num_labels": len(LABELS), **config}
    if kind == "bert":
        return save(BertForSequenceClassification(BertConfig(**options)), folder)
    return save(LlamaForSequenceClassification(LlamaConfig(**options)), folder)
