from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.sampler import check_sampler, off_argmax
from pytest_llminfer.families.tokens.penalties import check_no_penalty, shifts_of_seen_tokens
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.verdict import Outcome
from tests.support.present import present

END = 2
LIKELY = Answer(strict=True, flexible=True, tokens=50, off_argmax=0.0)


def answer(chosen: list[Any], gaps: list[float], *, max_logit: float | None = 16.0, ids: tuple[int, int] = (7, 8)) -> Generation:
    """One step each: token 7 is likeliest, 8 follows at the gap."""
    logprobs = np.array([[-0.1, -0.1 - gap] for gap in gaps], np.float32)
    largest = None if max_logit is None else np.full(len(gaps), max_logit, np.float32)
    return Generation(tuple(chosen), "stop", "", np.array([ids] * len(gaps), np.int32), logprobs, largest)


@pytest.mark.parametrize(
    ("chosen", "gaps", "dtype", "unlikely"),
    [
        ([7, 7, 7], [0.5, 0.0, 3.0], "bf16", 0),
        ([7, 8, 7], [0.5, 0.0, 3.0], "bf16", 0),  # an exact tie
        ([8], [0.12], "bf16", 0),  # equal once rounded: a step of bf16 at 16 is 0.125
        ([8], [0.13], "bf16", 1),
        ([8], [0.02], "fp16", 1),
        ([8], [1e-5], "fp32", 0),
        ([8], [0.001], "fp32", 1),
        ([8, 7, 8], [1.0, 1.0, 2.0], "bf16", 2),
        ([9], [1.0], "bf16", 1),  # below the second, by no less than that one
        ([9], [0.0], "bf16", 0),  # may be one of three that tie
        ([END], [5.0], "bf16", 1),
        ([8], [math.nan], "bf16", 1),
    ],
)
def test_chosen_tokens_beyond_a_tie_are_counted(chosen: list[int], gaps: list[float], dtype: str, unlikely: int) -> None:
    slack, found = present(off_argmax(answer(chosen, gaps), dtype=dtype))
    assert found == unlikely
    chosen_gaps = [gap for token, gap in zip(chosen, gaps, strict=True) if token != 7]
    assert slack == pytest.approx(max(chosen_gaps, default=0.0), abs=1e-6, nan_ok=True)


def test_an_end_token_that_is_likeliest_is_no_other_choice() -> None:
    assert off_argmax(answer([END, END], [0.5, 4.0], ids=(END, 8)), dtype="bf16") == (0.0, 0)


def test_a_tie_is_as_wide_as_the_logits_are_large() -> None:
    assert present(off_argmax(answer([8], [0.2], max_logit=33.0), dtype="bf16"))[1] == 0
    assert present(off_argmax(answer([8], [0.2], max_logit=31.0), dtype="bf16"))[1] == 1
    assert present(off_argmax(answer([8], [0.2], max_logit=None), dtype="bf16"))[1] == 1


def test_without_log_probabilities_nothing_is_said() -> None:
    assert off_argmax(Generation((7,), "stop"), dtype="bf16") is None
    silent = dataclasses.replace(LIKELY, off_argmax=None)
    verdict = check_sampler(answers={"a": silent}, dtype="bf16")
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert check_sampler(answers={}, dtype="bf16").outcome is Outcome.INCONCLUSIVE


def test_one_token_that_was_not_the_likeliest_makes_the_comparison_invalid_and_is_named() -> None:
    answers = {f"q{number}": LIKELY for number in range(100)}
    verdict = check_sampler(answers=answers, dtype="bf16")
    assert verdict.outcome is Outcome.PASS
    assert verdict.smallest_detectable == "one token of 5,000"
    answers["q7"] = dataclasses.replace(LIKELY, off_argmax=0.4, unlikely=2)
    verdict = check_sampler(answers=answers, dtype="bf16")
    assert verdict.outcome is Outcome.INVALID
    assert verdict.details == ("2 tokens of 5,000 in answers to 1 questions, by up to 0.4 nats: q7",)
    assert "a penalty or another sampler acts that was not asked for" in str(verdict)


PROMPTS = [[1, 2, 3], [3, 4]]


def listed(
    shift_of_seen: float = 0.0, tokens: tuple[tuple[int, int, int], tuple[int, int, int]] = ((5, 1, 6), (4, 9, 3))
) -> list[Any]:
    """Answers whose steps list two seen tokens and an unseen one."""
    ids = np.array([[1, 3, 30], [5, 3, 30], [5, 3, 30]], np.int32)
    other = np.array([[3, 4, 30]] * 3, np.int32)
    logprobs = np.array([[-0.2, -2.0, -4.0]] * 3, np.float32) + np.array([shift_of_seen, shift_of_seen, 0], np.float32)
    return [Generation(tokens[0], "stop", "", ids, logprobs), Generation(tokens[1], "stop", "", other, logprobs)]


@pytest.mark.parametrize(
    ("shift", "outcome"),
    [(0.0, Outcome.PASS), (0.09, Outcome.PASS), (-0.5, Outcome.INVALID), (0.5, Outcome.INVALID)],
)
def test_tokens_seen_before_that_lose_against_unseen_ones_are_a_penalty(shift: float, outcome: Outcome) -> None:
    shifts = shifts_of_seen_tokens(candidate=listed(shift), reference=listed(), prompts=PROMPTS)
    assert [len(steps) for steps in shifts] == [3, 3]
    assert [step for steps in shifts for step in steps] == pytest.approx([shift] * 6, abs=1e-6)
    verdict = check_no_penalty(shifts=shifts, claim="no penalty")
    assert verdict.outcome is outcome
    assert bool(verdict.details) is (outcome is Outcome.INVALID)


def test_steps_after_another_choice_are_not_compared() -> None:
    shifts = shifts_of_seen_tokens(candidate=listed(-1.0, ((5, 2, 6), (8, 9, 3))), reference=listed(), prompts=PROMPTS)
    assert [len(steps) for steps in shifts] == [2, 1]


def test_prompts_that_disagree_or_are_too_few_decide_nothing() -> None:
    assert check_no_penalty(shifts=[[-3.0], [3.5]], claim="").outcome is Outcome.INCONCLUSIVE
    assert check_no_penalty(shifts=[[-3.0], []], claim="").outcome is Outcome.INCONCLUSIVE
    assert check_no_penalty(shifts=[[], []], claim="").outcome is Outcome.INCONCLUSIVE
    bare = [Generation((5,), "stop"), Generation((4,), "stop")]
    assert shifts_of_seen_tokens(candidate=bare, reference=listed(), prompts=PROMPTS) == [[], []]
