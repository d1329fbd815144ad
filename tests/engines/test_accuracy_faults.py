"""The gates on accuracy on the reference model: silent on clean runs, and each fault met by the gate that should."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import accuracy_faults
import pytest
from accuracy_faults import MODEL_FAULTS as FAULTS
from accuracy_faults import Bench

from pytest_llminfer.baselines.record import differing
from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.families.accuracy.answers import check_flips
from pytest_llminfer.families.accuracy.observe import QuestionSet
from pytest_llminfer.families.accuracy.sampler import check_sampler
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome

FEW = 48


@pytest.fixture(scope="module")
def bench() -> Bench:
    return accuracy_faults.Bench(1000)


@pytest.fixture(scope="module")
def short(bench: Bench) -> Bench:
    """The same with few questions, for faults that lose most answers: their first look comes early, and their answers are long."""
    short = accuracy_faults.Bench(200)
    assert short.recorded.order == bench.recorded.order
    return short


@pytest.fixture(scope="module")
def engine(bench: Bench) -> Iterator[Engine]:
    """Started once for all tests."""
    with bench.engine(EngineSpec("transformers")) as engine:
        yield engine


@pytest.fixture(scope="module")
def clean() -> dict[str, Any]:
    """Answers of the engine as it is: each question is asked once."""
    return {}


def test_clean_runs_pass_in_every_order_and_are_asked_no_more_than_it_takes(
    bench: Bench, engine: Engine, clean: dict[str, Any]
) -> None:
    for seed in range(2):
        row = bench.judge(engine, seed=seed, known=clean)
        assert row.outcomes["accuracy"] is Outcome.PASS
        assert not row.caught
        assert row.asked <= 500


def test_two_percent_of_answers_altered_fail_accuracy(bench: Bench, engine: Engine, clean: dict[str, Any]) -> None:
    assert bench.judge(engine, accuracy_faults.alter(0.02), known=clean).outcomes["accuracy"] is Outcome.FAIL


def test_another_sampling_field_is_another_condition(bench: Bench, engine: Engine) -> None:
    conditions = bench.questions.conditions(engine)
    changed = QuestionSet(bench.dataset, bench.model, 1000)
    changed.sampling = replace(changed.sampling, repetition_penalty=1.05)
    (difference,) = differing(conditions, changed.conditions(engine))
    assert str(difference) == "sampling.repetition_penalty: recorded 1.0, now 1.05"


@pytest.mark.parametrize("where", ["in the worker", "on the way to it"])
def test_an_unrequested_repetition_penalty_is_invalid(bench: Bench, engine: Engine, where: str) -> None:
    asked: Any = accuracy_faults.Penalised(engine)
    if where == "in the worker":
        engine.run(f"{FAULTS}::penalise")
        asked = engine
    try:
        answers = bench.questions.graded(asked, bench.recorded.order[:FEW], watched=True)
    finally:
        engine.restart()
    verdict = check_sampler(answers=answers, dtype="bf16")
    assert verdict.outcome is Outcome.INVALID
    # Accuracy would not have told.
    assert check_flips(answers=answers, recorded=bench.recorded).outcome is Outcome.PASS


def test_a_penalty_that_is_part_of_what_is_reported_is_seen_in_the_distribution_alone(bench: Bench, engine: Engine) -> None:
    clean = bench.tokens(engine)
    engine.run(f"{FAULTS}::penalise_what_is_reported")
    try:
        tokens = bench.tokens(engine)
        answers = bench.questions.graded(engine, bench.recorded.order[:FEW], watched=True)
    finally:
        engine.restart()
    assert clean == {"tokens": Outcome.PASS, "penalty": Outcome.PASS}
    assert tokens == {"tokens": Outcome.PASS, "penalty": Outcome.INVALID}
    assert check_sampler(answers=answers, dtype="bf16").outcome is Outcome.PASS


def test_another_template_is_invalid(short: Bench, engine: Engine) -> None:
    outcomes = accuracy_faults.with_other_template(short, engine).outcomes
    assert Outcome.INVALID in (outcomes["format"], outcomes["length"], outcomes["truncated"])


# Positions off by one lose one point, half the margin: test_suites has the gates that are red for them.
@pytest.mark.parametrize("fault", ["lose_a_block", "round_weights"])
def test_a_fault_in_the_model_fails_accuracy(short: Bench, engine: Engine, fault: str) -> None:
    engine.run(f"{FAULTS}::{fault}")
    try:
        row = short.judge(engine)
        assert row.caught
        assert row.outcomes["accuracy"] is Outcome.FAIL
    finally:
        engine.restart()
