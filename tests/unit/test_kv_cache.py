from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.families.kv_cache.check import check_cache_prefix, check_cache_shape
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.observations.kv_cache import CacheLayer, CacheReport
from pytest_llminfer.verdict import Outcome, Verdict


def answer(
    tokens: list[Any], finish: str = "length", rivals: list[Any] | None = None, margin: float = 4.0, logit: float = 20.0
) -> Generation:
    """Every step lists its own token first and the rival of that step ``margin`` nats below."""
    steps = len(tokens)
    rivals = rivals or [token + 1000 for token in tokens]
    return Generation(
        token_ids=tuple(tokens),
        finish_reason=finish,
        top_ids=np.array(list(zip(tokens, rivals, strict=True)), dtype=np.int32).reshape(steps, 2),
        top_logprobs=np.array([[-0.1, -0.1 - margin]] * steps, dtype=np.float32).reshape(steps, 2),
        max_logit=np.full(steps, logit, dtype=np.float32),
    )


TOKENS = list(range(40))


def compare(candidate: Any, reference: Any, dtype: str = "bf16") -> Verdict:
    return check_same_greedy_tokens(candidate=candidate, reference=reference, dtype=dtype, claim="the cache paths agree")


def parted(position: int, margin: float, prompts: int = 10, dtype: str = "bf16") -> Verdict:
    """Ten prompts, one of which parts at ``position`` with ``margin`` on both sides."""
    other = [*TOKENS[:position], *(token + 500 for token in TOKENS[position:])]
    candidate = [answer(TOKENS)] * (prompts - 1) + [answer(other, rivals=TOKENS, margin=margin)]
    reference = [answer(TOKENS)] * (prompts - 1) + [answer(TOKENS, rivals=[token + 500 for token in TOKENS], margin=margin)]
    return compare(candidate, reference, dtype)


def value(verdict: Verdict, name: str) -> float | str:
    return next(entry.value for entry in verdict.measurements if entry.name == name)


def test_the_same_tokens_pass() -> None:
    verdict = compare([answer(TOKENS)] * 3, [answer(TOKENS)] * 3)
    assert (verdict.outcome, verdict.key, verdict.claim) == (Outcome.PASS, "120 tokens", "the cache paths agree")


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=20), min_size=1, max_size=6))
def test_any_run_agrees_with_itself(prompts: list[list[int]]) -> None:
    answers = [answer(tokens) for tokens in prompts]
    verdict = compare(answers, answers, "fp32")
    distinct = len({token for tokens in prompts for token in tokens})
    expected = Outcome.PASS if distinct > 1 or sum(map(len, prompts)) == 1 else Outcome.INCONCLUSIVE
    assert verdict.outcome is expected


@given(position=st.integers(0, 39))
def test_one_wrong_token_fails_wherever_it_is(position: int) -> None:
    verdict = parted(position, margin=4.0)
    assert (verdict.outcome, verdict.key) == (Outcome.FAIL, "1 of 10 differ")
    said = f"prompt 9, position {position}: token {position + 500} instead of token {position}, margin 4 nats here"
    assert verdict.details == (f"{said} and 4 in the reference, tie up to 0.25",)


def test_a_near_tie_passes_and_is_counted() -> None:
    verdict = parted(30, margin=0.25)
    assert verdict.outcome is Outcome.PASS
    assert value(verdict, "near ties") == 1
    assert value(verdict, "positions compared") == 391
    assert verdict.details[0].startswith("near tie, prompt 9, position 30")


@pytest.mark.parametrize(("dtype", "outcome"), [("bf16", Outcome.PASS), ("fp16", Outcome.FAIL), ("fp32", Outcome.FAIL)])
def test_what_ties_in_bf16_differs_in_fp32(dtype: str, outcome: Outcome) -> None:
    assert parted(30, margin=0.125, dtype=dtype).outcome is outcome


def test_just_beyond_two_steps_fails() -> None:
    assert parted(30, margin=0.2501).outcome is Outcome.FAIL


def test_near_ties_that_leave_too_little_to_compare_are_inconclusive() -> None:
    verdict = parted(0, margin=0.1, prompts=5)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.details[0] == "only 80.5% of positions were compared, because near ties ended the comparison"


def test_no_log_probabilities_make_every_difference_a_failure() -> None:
    bare = replace(answer([1, 2, 3]), top_ids=None, top_logprobs=None)
    assert compare([bare], [replace(bare, token_ids=(1, 2, 4))]).outcome is Outcome.FAIL
    assert compare([bare], [bare]).outcome is Outcome.PASS


def test_a_list_that_is_too_short_is_inconclusive() -> None:
    candidate, reference = answer([1, 2, 3], margin=0.01), answer([1, 2, 4], margin=0.01)
    verdict = compare([candidate], [reference])
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "top-k list is too short" in verdict.details[0]


def test_other_lengths_fail() -> None:
    verdict = compare([answer(TOKENS[:-1])], [answer(TOKENS)])
    assert verdict.outcome is Outcome.FAIL
    assert "its end instead of token 39: the answers have different lengths" in verdict.details[0]


def test_another_way_of_ending_fails() -> None:
    verdict = compare([answer(TOKENS, finish="stop")], [answer(TOKENS)])
    assert verdict.details == ("prompt 0: same tokens, but ended by 'stop', not 'length'",)
    assert verdict.outcome is Outcome.FAIL


@pytest.mark.parametrize(("ours", "theirs"), [(2, 3), (3, 2), (0, 3), (3, 0)])
def test_lost_or_added_answers_fail(ours: int, theirs: int) -> None:
    verdict = compare([answer(TOKENS)] * ours, [answer(TOKENS)] * theirs)
    assert verdict.outcome is Outcome.FAIL


@pytest.mark.parametrize("answers", [[], [answer([])]])
def test_nothing_to_compare_is_a_failure(answers: Any) -> None:
    verdict = compare(answers, answers)
    assert verdict.outcome is Outcome.FAIL
    assert "nothing was compared" in verdict.details[0]


def test_one_token_for_ever_proves_nothing() -> None:
    verdict = compare([answer([7] * 20)] * 4, [answer([7] * 20)] * 4)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "repeats one single token" in verdict.details[0]


LAYERS, HEADS, DIM = 3, 2, 16


def cache(
    prompt: int = 12,
    extended: int = 5,
    heads: int = HEADS,
    dtype: str = "bfloat16",
    layers: int = LAYERS,
    dim: int = DIM,
    item: int = 2,
    differences: tuple[float, float] = (0.0, 0.0),
) -> CacheReport:
    def stage(tokens: int) -> tuple[Any, ...]:
        shape = (1, heads, tokens, dim)
        return tuple(CacheLayer(shape, shape, dtype, 2 * heads * tokens * dim * item) for _ in range(layers))

    return CacheReport(prompt, extended, stage(prompt), stage(prompt + extended), (differences,) * layers)


def shape_of(report: CacheReport, dtype: str = "bf16") -> Verdict:
    return check_cache_shape(report=report, layers=LAYERS, kv_heads=HEADS, head_dim=DIM, dtype=dtype)


def test_the_right_cache_passes() -> None:
    verdict = shape_of(cache())
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "384 B/token")
    assert value(verdict, "cache after the prompt") == 384 * 12


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (cache(heads=8), "after the prompt, layer 0: keys have shape (1, 8, 12, 16), expected (1, 2, 12, 16)"),
        (cache(dtype="float32", item=4), "after the prompt, layer 0: dtype float32, expected bfloat16"),
        (cache(item=4), "after the prompt, layer 0: 3,072 bytes, expected 1,536"),
        (cache(layers=2), "after the prompt: 2 layers, expected 3"),
        (cache(dim=8), "after the prompt, layer 0: keys have shape (1, 2, 12, 8), expected (1, 2, 12, 16)"),
        (replace(cache(), extended_tokens=6), "after decoding, layer 0: keys have shape (1, 2, 17, 16), expected (1, 2, 18, 16)"),
        (replace(cache(), extended_layers=()), "after decoding: 0 layers, expected 3"),
        (cache(prompt=0), "nothing was compared: the prompt has no tokens"),
    ],
)
def test_a_wrong_cache_is_named(report: CacheReport, said: str) -> None:
    verdict = shape_of(report)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details[0] == said


def test_one_wrong_layer_is_named() -> None:
    report = cache()
    wrong = replace(report.layers[1], value_shape=(1, 2, 11, 16))
    verdict = shape_of(replace(report, layers=(report.layers[0], wrong, report.layers[2])))
    assert verdict.details == ("after the prompt, layer 1: values have shape (1, 2, 11, 16), expected (1, 2, 12, 16)",)


def test_a_batch_multiplies_the_bytes() -> None:
    shape = (4, HEADS, 3, DIM)
    layers = (CacheLayer(shape, shape, "float32", 2 * math.prod(shape) * 4),)
    report = CacheReport(3, 0, layers, layers, ((0.0, 0.0),))
    check: dict[str, Any] = {"report": report, "layers": 1, "kv_heads": HEADS, "head_dim": DIM, "dtype": "fp32"}
    assert check_cache_shape(**check, batch=4).outcome is Outcome.PASS
    assert check_cache_shape(**check).outcome is Outcome.FAIL


def test_an_unchanged_prefix_passes() -> None:
    verdict = check_cache_prefix(report=cache())
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "3 layers equal")


@pytest.mark.parametrize(
    ("differences", "diagnosis"),
    [
        ((1e-7, 0.0), "only keys changed: positions are wrong"),
        ((0.5, 0.25), "values changed: slots are wrong"),
        ((0.0, 5e-324), "values changed: slots are wrong"),
        ((math.nan, 0.0), "no position in common before and after decoding in layers 1"),
    ],
)
def test_any_change_of_the_prefix_fails(differences: tuple[float, float], diagnosis: str) -> None:
    report = cache()
    verdict = check_cache_prefix(report=replace(report, prefix_differences=((0.0, 0.0), differences, (0.0, 0.0))))
    assert (verdict.outcome, verdict.key) == (Outcome.FAIL, "1 layers changed")
    assert verdict.details[0] == diagnosis
    assert verdict.details[1].startswith("layer 1: keys differ")


@pytest.mark.parametrize("report", [cache(prompt=0), cache(extended=0), cache(layers=0)])
def test_a_prefix_that_was_not_compared_fails(report: CacheReport) -> None:
    verdict = check_cache_prefix(report=report)
    assert verdict.outcome is Outcome.FAIL
    assert "nothing was compared" in verdict.details[0]


def test_layers_that_were_not_compared_fail() -> None:
    verdict = check_cache_prefix(report=replace(cache(), prefix_differences=((0.0, 0.0),)))
    assert (verdict.outcome, verdict.details) == (Outcome.FAIL, ("1 layers were compared of 3",))
