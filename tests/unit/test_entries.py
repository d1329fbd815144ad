"""The names of entries: what was asked for, so that a default which moves is a difference and not another entry."""

from __future__ import annotations

import pytest

from pytest_llminfer.baselines.entries import Entry
from pytest_llminfer.spec import EngineSpec


@pytest.mark.parametrize(
    ("cell", "which", "name"),
    [
        ("transformers", {}, "transformers-none-auto-kv_auto"),
        ("transformers-nf4", {}, "transformers-nf4-auto-kv_auto"),
        ("vllm-fp16-kv_fp8-tp2", {}, "vllm-none-fp16-kv_fp8-tp2"),
        ("vllm-serve-dp2-native", {}, "vllm-none-auto-kv_auto-serve-dp2-native"),
        ("vllm-serve-tp2", {"per_parallelism": False}, "vllm-none-auto-kv_auto"),
        ("vllm-awq", {"by": "transformers", "unquantized": True}, "transformers-none-auto-kv_auto"),
        ("openai@http://host:1/v1", {}, "openai-none-auto-kv_auto"),
    ],
)
def test_an_entry_is_named_after_what_was_asked_for(cell: str, which: dict[str, object], name: str) -> None:
    entry = Entry.of(EngineSpec.parse(cell), **which)  # type: ignore[arg-type]
    assert str(entry) == name
    assert Entry.parse(name) == entry


@pytest.mark.parametrize("name", ["", "transformers", "transformers-none-bf16", "transformers-none-bf16-bf16", "a--b-kv_c"])
def test_another_name_is_no_entry(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of an entry"):
        Entry.parse(name)


def test_a_record_of_the_same_dtypes_may_be_filed_under_other_words() -> None:
    auto, explicit = Entry.parse("vllm-none-auto-kv_auto-tp2"), Entry.parse("vllm-none-bf16-kv_auto-tp2")
    assert explicit in auto.other_words("bf16", "bf16")
    assert auto in explicit.other_words("bf16", "bf16")
    assert auto not in auto.other_words("bf16", "bf16")
    assert all(other.words == ("tp2",) for other in auto.other_words("bf16", "bf16"))
