"""Tokens: greedy decoding chooses what it chose when the baseline was made, but for ties within rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.families.tokens.observe import observe, unpack
from pytest_llminfer.families.tokens.penalties import check_no_penalty, shifts_of_seen_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.observations.generation import Generation
    from pytest_llminfer.plugin.judging import Judge

pytestmark = pytest.mark.llminfer_needs("generate:logprobs")


def test_greedy_tokens_are_as_recorded(engine: Engine, greedy: Greedy, baseline: Baseline, judge: Judge) -> None:
    """Unquantized engines are all judged by the record of transformers at the same dtype, others by their own."""
    reference = "transformers" if engine.has_plain_weights else ""
    judge(
        check_same_greedy_tokens(
            candidate=greedy.batched,
            reference=_recorded(engine, greedy, baseline),
            dtype=greedy.dtype,
            noise=greedy.noise,
            claim=f"greedy decoding gives the tokens that {reference or 'this cell'} gave when the baseline was recorded",
        )
    )


def test_no_penalty_is_in_the_distribution(engine: Engine, greedy: Greedy, baseline: Baseline, judge: Judge) -> None:
    """Engines that report log-probabilities after penalties show one here alone: their choice is always the likeliest token."""
    recorded = _recorded(engine, greedy, baseline)
    shifts = shifts_of_seen_tokens(candidate=greedy.batched, reference=recorded, prompts=greedy.prompts)
    if not any(shifts):
        pytest.skip(
            "no step lists a token that was there before beside one that was not; an engine that tells more a step shows some"
        )
    judge(check_no_penalty(shifts=shifts, claim="tokens that are in the text already are as likely as recorded against others"))


def _recorded(engine: Engine, greedy: Greedy, baseline: Baseline) -> Sequence[Generation]:
    recorded: Sequence[Generation] = baseline.expected(
        "tokens",
        observe=observe,
        conditions=greedy.conditions,
        n=len(greedy.prompts),
        per_hardware=profile(engine.spec.engine).draws_on_device(engine.spec),
        per_parallelism=profile(engine.spec.engine).draws_per_rank(engine.spec),
        by="transformers" if engine.has_plain_weights else "",
        read=unpack,
    )
    return recorded


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
