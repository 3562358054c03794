"""Traces: what each format says, and what is wrong with a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker import ConfigError, RequestPriority
from stoker_ops.simulate.traces import Arrival, read_trace, shaped


def written(folder: Path, text: str, name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_text(text, newline="")
    return path


def test_azure_lines_end_in_crlf_have_seven_digits_and_the_last_has_no_end(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.1805900,396,0"
    )
    assert read_trace(written(tmp_path, text, "azure.csv")) == [Arrival(0, 374, 44, 44), Arrival(3.5, 396, 0, 0)]


def test_mooncake_counts_milliseconds_and_may_have_more_fields(tmp_path: Path) -> None:
    text = (
        '{"timestamp": 27000, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
        '{"timestamp": 30500, "input_length": 10, "output_length": 1, "hash_ids": []}\n'
    )
    assert read_trace(written(tmp_path, text)) == [Arrival(0, 6955, 52, 52), Arrival(3.5, 10, 1, 1)]


def test_a_trace_of_ones_own_may_say_class_tenant_and_time_to_live(tmp_path: Path) -> None:
    text = (
        '{"at_s": 2, "prompt_tokens": 5, "output_tokens": 3}\n\n'
        '{"at_s": 0.5, "prompt_tokens": 7, "output_tokens": 2, "max_tokens": 9, "priority": "low", "tenant": "acme",'
        ' "timeout": 30}\n'
    )
    assert read_trace(written(tmp_path, text)) == [
        Arrival(0.5, 7, 2, 9, RequestPriority.LOW, "acme", 30),
        Arrival(2, 5, 3, 3),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "a,b\n1,2\n", "columns TIMESTAMP, ContextTokens, GeneratedTokens; missing"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,1,2\n", "t.csv:2: TIMESTAMP must be a time"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,0,2\n", "ContextTokens must be a whole number"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,1\n", "GeneratedTokens must be a whole number"),
        ("t.jsonl", "{\n", "t.jsonl:1 is not JSON"),
        ("t.jsonl", "[1]\n", "t.jsonl:1 must hold one JSON object"),
        ("t.jsonl", '{"at_s": 0, "prompt_tokens": 1}\n', "output_tokens must be a whole number from 0"),
        (
            "t.jsonl",
            '{"at_s": -1, "prompt_tokens": 1, "output_tokens": 1}\n',
            "at_s must be a finite number >= 0, got -1",
        ),
        ("t.jsonl", '{"at_s": NaN, "prompt_tokens": 1, "output_tokens": 1}\n', "at_s must be a finite number"),
        ("t.jsonl", '{"at_s": 0, "prompt_tokens": 1.5, "output_tokens": 1}\n', "prompt_tokens must be a whole number"),
        ("t.jsonl", '{"at_s": 0, "prompt_tokens": 1, "output_tokens": 9, "max_tokens": 8}\n', "from 9 to"),
        ("t.jsonl", '{"at_s": 0, "prompt_tokens": 1, "output_tokens": 1, "priority": "urgent"}\n', "got 'urgent'"),
        ("t.jsonl", '{"at_s": 0, "prompt_tokens": 1, "output_tokens": 1, "prompt": "x"}\n', "prompt is no field"),
        ("t.jsonl", "", "has no requests"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_field_and_value(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(written(tmp_path, text, name))
    assert words in str(caught.value)
    assert "trace: " in str(caught.value)


TRACE = [Arrival(1, 10, 5, 5), Arrival(3, 20, 6, 6)]


def test_a_rate_moves_arrivals_together_and_leaves_the_rest() -> None:
    found = shaped(TRACE, repeat=1, rate=2, max_tokens=None, timeout=None)
    assert found == [Arrival(0.5, 10, 5, 5), Arrival(1.5, 20, 6, 6)]


def test_a_saturated_trace_waits_from_the_start_in_its_order() -> None:
    found = shaped(TRACE, repeat=2, rate=None, max_tokens=None, timeout=None)
    assert [one.prompt_tokens for one in found] == [10, 10, 20, 20]
    assert [one.at_s for one in found] == sorted({one.at_s for one in found})
    assert found[-1].at_s < 1e-3


def test_clients_ask_for_at_least_what_they_get() -> None:
    found = shaped(TRACE, repeat=1, rate=1, max_tokens=6, timeout=9)
    assert [(one.max_tokens, one.timeout) for one in found] == [(6, 9), (6, 9)]
    assert shaped(TRACE, repeat=1, rate=1, max_tokens=3, timeout=None)[1].max_tokens == 6
