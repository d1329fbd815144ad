"""Keys, records and the comparison of their conditions."""

from __future__ import annotations

from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any

import pytest

from pytest_llminfer.baselines.record import ABSENT, BaselineKey, Record, differing
from pytest_llminfer.errors import BaselineError


class Size(IntEnum):
    SMALL = 1


class Word(StrEnum):
    GREEDY = "greedy"


@pytest.mark.parametrize(
    ("hardware", "model", "family", "path"),
    [
        ("any", "reference", "gsm8k", "any/reference/gsm8k.json"),
        ("nvidia-h100-80gb-hbm3-x1", "Qwen/Qwen3-0.6B", "kv_cache", "nvidia-h100-80gb-hbm3-x1/qwen-qwen3-0.6b/kv_cache.json"),
        ("any", "/home/somebody/models/Llama 3", "gsm8k", "any/llama-3/gsm8k.json"),
        ("any", "../../etc/passwd", "../x", "any/etc-passwd/x.json"),
        ("any", "模型", "gsm8k", "any/模型/gsm8k.json"),
    ],
)
def test_a_key_names_one_file_inside_the_directory(hardware: str, model: str, family: str, path: str) -> None:
    assert str(BaselineKey(hardware, model, family, "e").path) == path


@pytest.mark.parametrize("part", ["hardware", "model", "family"])
@pytest.mark.parametrize("value", ["", "..", "///", " - "])
def test_a_key_that_names_no_file_is_an_error(part: str, value: str) -> None:
    parts = {"hardware": "any", "model": "m", "family": "f", part: value}
    with pytest.raises(BaselineError, match=f"{part} {value!r} has no letter or digit"):
        _ = BaselineKey(**parts, entry="e").path


def test_a_record_is_a_plain_copy() -> None:
    tokens = [1, 2]
    record = Record({"tokens": tokens, "pair": (1, (2.5, None))}, {"size": Size.SMALL, "word": Word.GREEDY}, {"ok": True})
    tokens.append(3)
    assert record.expected == {"tokens": [1, 2], "pair": [1, [2.5, None]]}
    assert type(record.conditions["size"]) is int
    assert type(record.conditions["word"]) is str
    assert record.provenance["ok"] is True


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"tokens": [1.0, float("nan")]}, r"expected\.tokens\[1\] of a baseline record is nan"),
        ({"x": float("-inf")}, r"expected\.x of a baseline record is -inf"),
        ({"a": {"b": Decimal(1)}}, r"expected\.a\.b of a baseline record is a Decimal"),
        ({"a": {1: 2}}, r"expected\.a of a baseline record has the key 1"),
        ({"a": {1, 2}}, r"expected\.a of a baseline record is a set"),
        ([1], "expected of a baseline record must be a mapping, not list"),
    ],
)
def test_what_json_cannot_hold_is_named_by_its_place(expected: Any, message: str) -> None:
    with pytest.raises(BaselineError, match=message):
        Record(expected, {}, {})


@pytest.mark.parametrize(
    ("recorded", "current", "found"),
    [
        ({}, {}, []),
        ({"a": 1, "b": "x"}, {"b": "x", "a": 1}, []),
        ({"stop": [1, 2]}, {"stop": (1, 2)}, []),
        ({"temperature": 0}, {"temperature": 0.0}, []),
        ({"a": 1}, {"a": 2}, [("a", 1, 2)]),
        ({"a": 1}, {}, [("a", 1, ABSENT)]),
        ({}, {"a": None}, [("a", ABSENT, None)]),
        ({"a": ABSENT}, {}, [("a", ABSENT, ABSENT)]),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, [("a", 1, 2), ("b", 1, 2)]),
        ({"s": {"t": 0, "p": 1}}, {"s": {"t": 1, "p": 1}}, [("s.t", 0, 1)]),
        ({"s": {}}, {}, [("s", {}, ABSENT)]),
        ({"s": {}}, {"s": {"t": 1}}, [("s.t", ABSENT, 1)]),
        ({"s": {"t": 1}}, {"s": 1}, [("s", {"t": 1}, 1)]),
    ],
)
def test_conditions_differ_field_by_field(recorded: dict[str, Any], current: dict[str, Any], found: list[Any]) -> None:
    assert differing(recorded, current) == found


def test_a_difference_reads_as_a_sentence() -> None:
    assert str(differing({"prompt": "ab12"}, {"prompt": "cd34"})[0]) == "prompt: recorded 'ab12', now 'cd34'"
