"""Tokens: greedy decoding chooses what it chose when the baseline was made, but for ties within rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.checks.kv_cache import check_same_greedy_tokens
from pytest_llminfer.greedy import pack, unpack

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.greedy import Greedy
    from pytest_llminfer.judging import Judge
    from pytest_llminfer.recording import Baseline


def test_greedy_tokens_are_as_recorded(engine: Engine, greedy: Greedy, baseline: Baseline, judge: Judge) -> None:
    """Unquantized engines are all judged by the record of transformers at the same dtype, others by their own."""
    reference = "transformers" if engine.has_plain_weights else ""
    expected = baseline.expected(
        "tokens",
        observed=lambda _: pack(greedy.batched),
        conditions=greedy.conditions,
        n=len(greedy.prompts),
        per_hardware=engine.spec.draws_on_device,
        per_spread=engine.spec.draws_per_rank,
        by=reference,
    )
    judge(
        check_same_greedy_tokens(
            candidate=greedy.batched,
            reference=unpack(expected),
            dtype=greedy.dtype,
            noise=greedy.noise,
            claim=f"greedy decoding gives the tokens that {reference or 'this cell'} gave when the baseline was recorded",
        )
    )


def test_tokens_do_not_depend_on_the_batch(greedy: Greedy, judge: Judge) -> None:
    """All prompts at once, and one by one: without this, agreement with a record would be luck."""
    judge(
        check_same_greedy_tokens(
            candidate=greedy.batched,
            reference=greedy.one_by_one,
            dtype=greedy.dtype,
            noise=greedy.noise,
            claim="greedy decoding gives the same tokens to a batch of prompts and to each prompt alone",
        )
    )
