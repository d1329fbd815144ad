"""The divergence gate on the reference model in transformers: sound as recorded, and red for faults of the live model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pytest_llminfer.baselines import side_files
from pytest_llminfer.datasets.load import load
from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.families.divergence.check import LIMITS, SAME_WEIGHTS, check_divergence, check_unchanged, compare
from pytest_llminfer.families.divergence.observe import POSITIONS, TOP, TeacherForced
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Scores
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome
from tests.support.paths import FAULTS as FOLDER

FAULTS = FOLDER / "prefill.py"
BASELINES = Path(__file__).resolve().parents[2] / "baselines" / "any" / "reference"


@pytest.fixture(scope="module")
def teacher_forced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherForced]:
    """What the sound engine predicts; the engine is started once for all tests."""
    log = tmp_path_factory.mktemp("worker") / "log"
    engine = Engine(Launch(EngineSpec("transformers"), Model("reference"), {}, {}, timeout=240, log=log))
    yield TeacherForced.ask(engine, load("synthetic"))
    engine.close()


@pytest.fixture(scope="module")
def recorded() -> list[Scores]:
    entries = json.loads((BASELINES / "divergence.json").read_text())["entries"]
    content = side_files.load(entries["transformers-none-auto-kv_auto"]["expected"]["side_file"], [BASELINES])
    arrays = side_files.unpack(content)
    return [Scores(*columns) for columns in zip(*(arrays[name] for name in ("logprobs", "top_ids", "top_logprobs")), strict=True)]


@pytest.fixture
def faulty(teacher_forced: TeacherForced) -> Iterator[Callable[..., list[Scores]]]:
    """Predictions with a fault in the live model, which is sound again afterwards."""
    undone = []

    def faulty(fault: str, undo: str, **arguments: object) -> list[Scores]:
        teacher_forced.engine.run(f"{FAULTS}::{fault}", **arguments)
        undone.append(undo)
        return teacher_forced.engine.score_top(teacher_forced.sequences, top=TOP, last=POSITIONS)

    yield faulty
    for undo in undone:
        teacher_forced.engine.run(f"{FAULTS}::{undo}")
    again = teacher_forced.engine.score_top(teacher_forced.sequences, top=TOP, last=POSITIONS)
    assert compare(candidate=again, reference=teacher_forced.scores, dtype="bf16").kl.max() < 1e-4


def outcomes(candidate: list[Scores], reference: list[Scores], kind: str = SAME_WEIGHTS) -> tuple[Outcome, Outcome]:
    """By the limits of the kind, and by the record."""
    limits = check_divergence(
        candidate=candidate, reference=reference, limit=LIMITS[kind], kind=kind, dtype="bf16", of="the record"
    )
    record = check_unchanged(candidate=candidate, recorded=reference, noise=0.0, dtype="bf16", same_setting=True)
    return limits.outcome, record.outcome


def test_top_scores_equal_those_of_prefill_and_of_an_independent_implementation(teacher_forced: TeacherForced) -> None:
    plain = teacher_forced.engine.score(teacher_forced.sequences[:4])
    for ids, row, scores in zip(teacher_forced.sequences[:4], plain, teacher_forced.scores, strict=False):
        assert scores.top_ids.shape == scores.top_logprobs.shape == (POSITIONS, TOP)
        # bf16, and a batch that is padded: the likely tokens are what can be compared.
        likely = row[-POSITIONS:] > -2
        np.testing.assert_allclose(scores.logprobs[likely], row[-POSITIONS:][likely], atol=0.15)
        assert (np.diff(scores.top_logprobs, axis=1) <= 0).all()
        given = np.array(ids[-POSITIONS:])
        listed = scores.top_ids == given[:, None]
        np.testing.assert_array_equal(scores.top_logprobs[listed], scores.logprobs[listed.any(axis=1)])


def test_the_sound_engine_is_as_recorded(teacher_forced: TeacherForced, recorded: list[Scores]) -> None:
    same = check_divergence(
        candidate=teacher_forced.scores,
        reference=recorded,
        limit=LIMITS[SAME_WEIGHTS],
        kind=SAME_WEIGHTS,
        dtype="bf16",
        of="the record",
    )
    assert same.outcome is Outcome.PASS, str(same)
    assert teacher_forced.noise() < 1e-4


def test_a_shifted_position_fails_both_gates(faulty: Callable[..., list[Scores]], recorded: list[Scores]) -> None:
    assert outcomes(faulty("shift_positions", "unshift_positions"), recorded) == (Outcome.FAIL, Outcome.FAIL)


@pytest.mark.parametrize("kind", [SAME_WEIGHTS, "8-bit", "4-bit", "3-bit"])
def test_weights_rounded_to_three_bits_fail_whatever_they_are_called(
    faulty: Callable[..., list[Scores]], recorded: list[Scores], kind: str
) -> None:
    assert outcomes(faulty("round_weights", "restore_weights", bits=3), recorded, kind) == (Outcome.FAIL, Outcome.FAIL)


def test_weights_rounded_to_eight_bits_are_within_eight_bit_and_warned_of(
    faulty: Callable[..., list[Scores]], recorded: list[Scores]
) -> None:
    """They change less than another engine may, and far more than another execution mode of this one."""
    rounded = faulty("round_weights", "restore_weights", bits=8)
    assert outcomes(rounded, recorded, "8-bit") == (Outcome.PASS, Outcome.INCONCLUSIVE)
