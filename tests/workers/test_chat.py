"""A conversation becomes the text that the model's template makes of it, and nothing is added to that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stoker import InvalidRequest
from stoker_workers.demo import demo_model_path
from stoker_workers.engines.torch import TorchEngine
from workers.models import make_tokenizer

pytestmark = pytest.mark.torch

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo model, with a tokenizer that puts a begin and an end token around every text."""
    path = shutil.copytree(demo_model_path(), tmp_path / "model")
    (path / "chat_template.jinja").unlink()
    make_tokenizer().save_pretrained(path)
    return path


def load(folder: Path) -> TorchEngine:
    engine = TorchEngine(folder, device="cpu")
    engine.load()
    return engine


def test_a_template_that_writes_the_begin_token_gets_no_second_one(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    engine = load(folder)
    tokenizer = make_tokenizer()
    assert engine.encode("hi") == tokenizer("hi")["input_ids"]
    assert engine.encode("hi")[0] == tokenizer.bos_token_id
    ids = engine.encode_chat(TALK)
    assert tokenizer.decode(ids) == "<s>system: Be brief.\nuser: hi\nassistant:"
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids


def test_a_template_without_a_begin_token_gets_none(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE.removeprefix("{{ bos_token }}"))
    assert make_tokenizer().decode(load(folder).encode_chat(TALK)).startswith("system: Be brief.")


def test_a_model_without_a_template_says_what_to_send_instead(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="messages: this model has no chat template; give a prompt"):
        load(folder).encode_chat(TALK)
