"""Truncated KL against the whole distribution, and the three verdicts that are built on it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llminfer import spec
from pytest_llminfer.datasets.load import load
from pytest_llminfer.families.divergence import observe
from pytest_llminfer.families.divergence.check import (
    LIMITS,
    NOISE_FLOOR,
    Limits,
    check_divergence,
    check_divergence_ratio,
    check_unchanged,
    compare,
    kind_of,
)
from pytest_llminfer.families.divergence.observe import (
    POSITIONS,
    PROMPTS,
    Divergence,
    Recorded,
    device_of,
    teacher_forced_sequences,
)
from pytest_llminfer.models.model import Model
from pytest_llminfer.numerics.truncated_kl import truncated_kl
from pytest_llminfer.observations.generation import Scores
from pytest_llminfer.stats.bootstrap import limits, resampled_means
from pytest_llminfer.verdict import Outcome

VOCABULARY, TOP = 200, 20


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def scores(logits: np.ndarray, top: int = TOP) -> Scores:
    """As an engine gives them: float32, most likely first."""
    logprobs = log_softmax(logits.astype(np.float64))
    ids = np.argsort(-logprobs, axis=-1, kind="stable")[:, :top]
    return Scores(
        logprobs=logprobs[:, 0].astype(np.float32),
        top_ids=ids.astype(np.int32),
        top_logprobs=np.take_along_axis(logprobs, ids, axis=-1).astype(np.float32),
    )


def whole_kl(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    ours, theirs = log_softmax(candidate.astype(np.float64)), log_softmax(reference.astype(np.float64))
    return (np.exp(theirs) * (theirs - ours)).sum(axis=-1)


def logits(seed: int, *, prompts: int = 32, positions: int = 128, scale: float = 3.0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(0, scale, (positions, VOCABULARY)) for _ in range(prompts)]


def noisy(given: list[np.ndarray], size: float, seed: int = 1) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [rows + generator.normal(0, size, rows.shape) for rows in given]


def seen(given: list[np.ndarray]) -> list[Scores]:
    return [scores(rows) for rows in given]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 15), change=st.floats(0, 15))
def test_truncated_kl_is_never_above_the_true_one(seed: int, scale: float, change: float) -> None:
    generator = np.random.default_rng(seed)
    reference = generator.normal(0, scale, (16, VOCABULARY))
    candidate = reference + generator.normal(0, change, reference.shape)
    found, true = truncated_kl(scores(reference), scores(candidate)), whole_kl(reference, candidate)
    assert (found >= 0).all()
    # float32 log-probabilities: 20 of them, each right to 2^-24 relative.
    assert (found <= true * (1 + 1e-4) + 1e-5).all()


def test_truncated_kl_of_lists_that_hold_everything_is_the_true_one() -> None:
    (reference,) = logits(0, prompts=1, scale=2.0)
    candidate = noisy([reference], 0.5)[0]
    found = truncated_kl(scores(reference, VOCABULARY), scores(candidate, VOCABULARY))
    np.testing.assert_allclose(found, whole_kl(reference, candidate), rtol=1e-4)


def test_truncated_kl_keeps_most_of_a_small_change() -> None:
    (reference,) = logits(0, prompts=1)
    candidate = noisy([reference], 0.1)[0]
    assert truncated_kl(scores(reference), scores(candidate)).mean() > 0.7 * whole_kl(reference, candidate).mean()


def test_truncated_kl_is_zero_for_the_same_and_not_symmetric() -> None:
    (reference,) = logits(0, prompts=1)
    candidate = 0.5 * reference
    assert truncated_kl(scores(reference), scores(reference)).max() == 0.0
    there, back = truncated_kl(scores(reference), scores(candidate)), truncated_kl(scores(candidate), scores(reference))
    assert abs(there.mean() - back.mean()) > 0.01


def test_lists_without_a_common_token_are_far_apart() -> None:
    """Folding everything into one tail on both sides would call them equal."""
    reference, candidate = np.zeros((1, VOCABULARY)), np.zeros((1, VOCABULARY))
    reference[0, :20], candidate[0, 100:120] = 12.0, 12.0
    found, true = truncated_kl(scores(reference), scores(candidate)), whole_kl(reference, candidate)
    assert 5 < found[0] <= true[0]


def test_a_token_that_only_the_candidate_likes_shows_although_the_reference_does_not_list_it() -> None:
    reference = np.zeros((1, VOCABULARY))
    reference[0, :20] = 1.0
    candidate = reference.copy()
    candidate[0, 150] = 6.0
    assert truncated_kl(scores(reference), scores(candidate))[0] > 0.5


@pytest.mark.parametrize("broken", [math.nan, 0.5])
def test_what_is_no_distribution_is_a_failure_and_not_a_number(broken: float) -> None:
    sound = seen(logits(0, prompts=2, positions=4))
    values = sound[1].top_logprobs.copy()
    values[2, 0] = broken
    faulty = [sound[0], Scores(sound[1].logprobs, sound[1].top_ids, values)]
    verdict = check_unchanged(candidate=faulty, recorded=sound, noise=0.0, dtype="fp32", same_setting=True)
    assert verdict.outcome is Outcome.FAIL
    assert "1 positions hold no probabilities" in str(verdict)
    ratio = check_divergence_ratio(candidate=faulty, recorded=sound, reference=sound, noise=0.0, dtype="fp32", of="it")
    assert ratio.outcome is Outcome.FAIL


@pytest.mark.parametrize("lost", [slice(0, 0), slice(0, 3)])
def test_nothing_compared_and_prompts_that_are_missing_fail(lost: slice[int, int, Any]) -> None:
    sound = seen(logits(0, prompts=4, positions=4))
    for candidate, reference in ((sound[lost], sound), (sound, sound[lost]), ([], [])):
        verdict = check_unchanged(candidate=candidate, recorded=reference, noise=0.0, dtype="fp32", same_setting=True)
        assert verdict.outcome is Outcome.FAIL
        assert "nothing can be compared" in str(verdict)


def test_every_word_for_weights_has_a_kind_and_the_coarser_one_counts() -> None:
    assert {kind_of(word) for word in spec.QUANTIZATIONS} <= set(LIMITS)
    assert kind_of("none") == "same weights"
    assert kind_of("none", "fp8") == "8-bit"
    assert kind_of("int8", "q4_0") == "4-bit"
    assert kind_of("nf4", "fp8") == "4-bit"
    assert kind_of("gptq", bits=3) == "3-bit"
    assert kind_of("gptq", bits=8) == "8-bit"
    assert kind_of("none", "bf16") == "same weights"


@pytest.fixture(scope="module")
def reference() -> list[npt.NDArray[Any]]:
    return logits(0)


@pytest.mark.parametrize(
    ("size", "limit", "outcome"),
    [(0.05, 0.01, Outcome.PASS), (0.3, 0.01, Outcome.FAIL), (0.3, None, Outcome.INCONCLUSIVE)],
)
def test_divergence_against_a_limit(reference: Any, size: float, limit: None, outcome: Outcome) -> None:
    candidate, theirs = seen(noisy(reference, size)), seen(reference)
    measured = compare(candidate=candidate, reference=theirs, dtype="fp32").kl.mean()
    verdict = check_divergence(
        candidate=candidate, reference=theirs, limit=Limits(limit or measured, 0.5), kind="4-bit", dtype="fp32", of="the reference"
    )
    assert verdict.outcome is outcome
    assert verdict.key.startswith(f"KL {measured:.2g}")


def test_a_top1_below_its_limit_fails_although_the_divergence_is_small() -> None:
    """Two tokens nearly tied everywhere: a change of 0.02 nats turns the choice and hardly the distribution."""
    rows = np.full((128, VOCABULARY), -5.0)
    rows[:, 0], rows[:, 1] = 1.0, 0.99
    turned = rows.copy()
    turned[:64, 1] = 1.01
    asked: dict[str, Any] = {"kind": "4-bit", "of": "the reference", "limit": Limits(0.06, 0.9)}
    verdict = check_divergence(candidate=[scores(turned)] * 4, reference=[scores(rows)] * 4, dtype="fp32", **asked)
    assert verdict.outcome is Outcome.FAIL
    assert float(verdict.measurements[0].value) < 0.001
    # The same is a tie within rounding in bf16, whose steps are 0.125 at logits of 16.
    verdict = check_divergence(candidate=[scores(turned)] * 4, reference=[scores(rows)] * 4, dtype="bf16", **asked)
    assert verdict.outcome is Outcome.PASS
    assert "256 of them near ties" in str(verdict)


@pytest.mark.parametrize(
    ("size", "outcome"), [(0.3, Outcome.PASS), (0.2, Outcome.PASS), (0.36, Outcome.FAIL), (0.337, Outcome.INCONCLUSIVE)]
)
def test_ratio_to_the_record(reference: Any, size: float, outcome: Outcome) -> None:
    """KL grows with the square of the noise: 0.36 against 0.3 is 1.4 times as far, 0.337 is 1.25 times."""
    verdict = check_divergence_ratio(
        candidate=seen(noisy(reference, size, 2)),
        recorded=seen(noisy(reference, 0.3, 1)),
        reference=seen(reference),
        noise=0.0,
        dtype="bf16",
        of="the reference",
    )
    assert verdict.outcome is outcome


def test_two_figures_that_are_both_noise_make_no_ratio(reference: Any) -> None:
    asked: dict[str, Any] = {
        "candidate": seen(noisy(reference, 0.004)),
        "recorded": seen(noisy(reference, 0.001)),
        "reference": seen(reference),
        "of": "the reference",
    }
    assert check_divergence_ratio(**asked, noise=0.0, dtype="fp32").outcome is Outcome.FAIL
    assert check_divergence_ratio(**asked, noise=1e-4, dtype="fp32").outcome is Outcome.PASS


def test_unchanged_up_to_four_times_the_noise(reference: Any) -> None:
    recorded = seen(reference)
    candidate = seen(noisy(reference, 0.05))
    measured = float(compare(candidate=candidate, reference=recorded, dtype="bf16").kl.mean())
    asked: dict[str, Any] = {"candidate": candidate, "recorded": recorded, "dtype": "bf16"}
    assert measured > 4 * NOISE_FLOOR["bfloat16"]
    assert check_unchanged(**asked, noise=measured / 3, same_setting=True).outcome is Outcome.PASS
    assert check_unchanged(**asked, noise=measured / 4, same_setting=True).outcome is Outcome.INCONCLUSIVE
    # Above the noise and within what the same weights may change: another kernel, a warning. Beyond that: a failure.
    warned = check_unchanged(**asked, noise=measured / 5, same_setting=True)
    assert warned.outcome is Outcome.INCONCLUSIVE
    assert "another kernel" in warned.advice
    beyond = seen(noisy(reference, 0.1))
    assert check_unchanged(candidate=beyond, recorded=recorded, dtype="bf16", noise=0.0, same_setting=True).outcome is Outcome.FAIL
    # Another device or parallelism: other kernels are expected, and the limit is that of the same weights.
    candidate = seen(noisy(reference, 0.02))
    assert (
        check_unchanged(candidate=candidate, recorded=recorded, noise=0.0, dtype="bf16", same_setting=False).outcome is Outcome.PASS
    )
    assert (
        check_unchanged(candidate=candidate, recorded=recorded, noise=0.0, dtype="bf16", same_setting=True).outcome
        is Outcome.INCONCLUSIVE
    )


def test_a_processor_of_the_same_name_with_other_instructions_is_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on two hosts that both say AMD EPYC: the same bf16 model differs by 6.1e-5 nats, eleven times its noise."""
    info: Any = SimpleNamespace(device="cpu", device_name="AMD EPYC")
    cell: Any = SimpleNamespace(_engine=SimpleNamespace(spec=spec.EngineSpec("transformers"), info=info))
    monkeypatch.setattr(observe, "instruction_sets", lambda: ("avx2", "avx512f", "avx512_bf16"))
    record = Recorded([], 1e-5, device_of(info))
    assert record.device == "AMD EPYC avx2 avx512f avx512_bf16"
    assert Divergence.same_setting(cell, record)
    monkeypatch.setattr(observe, "instruction_sets", lambda: ("avx2",))
    assert not Divergence.same_setting(cell, record)
    # A record that does not say is of an unknown one.
    assert not Divergence.same_setting(cell, Recorded([], 1e-5, "AMD EPYC"))
    assert device_of(SimpleNamespace(device="cuda", device_name="NVIDIA H200")) == "NVIDIA H200"  # type: ignore[arg-type]


def test_limits_hold_the_mean_of_the_population_as_often_as_they_say() -> None:
    """Coverage over 400 samples of 32 prompts, skewed like KL: one-sided misses of 1 % each, within what 32 prompts allow."""
    generator = np.random.default_rng(0)
    below = above = 0
    for number in range(400):
        sample = generator.gamma(2.0, 0.5, 32)
        low, high = limits(resampled_means(sample, seed=number)[0])
        below, above = below + (low > 1.0), above + (high < 1.0)
    # P(more than 11 of 400 at 1 %) is 0.002; the upper side of a skewed mean is missed more often, which only passes too early.
    assert below <= 11
    assert above <= 24


def test_resampling_keeps_pairs_and_is_the_same_every_time() -> None:
    values = np.arange(8.0)
    one, twice = resampled_means(values, 2 * values)
    np.testing.assert_allclose(twice, 2 * one)
    np.testing.assert_array_equal(one, resampled_means(values)[0])


def test_sequences_are_chats_with_128_positions_after_the_first_prompt_or_drawn() -> None:
    model, dataset = Model("reference"), load("synthetic")
    sequences = teacher_forced_sequences(model, dataset)
    assert len({tuple(ids) for ids in sequences}) == PROMPTS
    problems = {problem.question: problem.answer for problem in dataset.problems}
    for ids in sequences:
        prompt, teacher_forced = model.decode(ids[:-POSITIONS]), model.decode(ids[-POSITIONS:])
        question = next(question for question in problems if question in prompt)
        assert prompt.rstrip().endswith("assistant")
        assert teacher_forced.startswith(problems[question][:40])
    drawn: Any = SimpleNamespace(weights="dummy", has_tokenizer=True, sample_prompts=model.sample_prompts)
    assert {len(ids) for ids in teacher_forced_sequences(drawn, dataset)} == {64 + POSITIONS}
