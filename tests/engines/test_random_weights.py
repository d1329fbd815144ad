"""Weights of tools/random_checkpoint.py act like trained ones: predictions that a faulty cache moves, and rounding does not."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.families.execution_modes.check import check_execution_modes
from pytest_llminfer.families.execution_modes.texts import refuse_flat
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome, Verdict
from tests.support.paths import PROGRAMS

PROGRAM = PROGRAMS / "random_weights.py"
FAULTS = ("shifted", "wrong block", "permuted keys")


@pytest.fixture(scope="module")
def measured() -> Any:
    """By weights, what the program prints; it takes about ten seconds."""
    done = subprocess.run([sys.executable, PROGRAM], check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


def judged(measured: Any, weights: str, execution_mode: str, kv_dtype: str = "") -> Verdict:
    kl = {name: [np.array(values) for values in rows] for name, rows in measured[weights]["kl"].items()}
    return check_execution_modes(
        candidate=kl[execution_mode], noise=kl["alone"], dtype="bf16", kv_dtype=kv_dtype, claim=execution_mode
    )


def mean(measured: Any, weights: str, execution_mode: str) -> float:
    return float(np.mean(measured[weights]["kl"][execution_mode]))


def test_predictions_are_peaked_and_tell_tokens_apart(measured: Any) -> None:
    drawn = [np.array(rows, np.float32) for rows in measured["drawn"]["top_logprobs"]]
    ids = np.zeros(drawn[0].shape, np.int32)
    engine: Any = SimpleNamespace(spec=EngineSpec("transformers"))
    refuse_flat(engine, [Generation((0,) * len(rows), "length", top_ids=ids, top_logprobs=rows) for rows in drawn])
    assert 1 < measured["drawn"]["entropy"] < 5 < measured["plain"]["entropy"]
    first, second = (np.array(drawn)[..., number] for number in (0, 1))
    assert np.median(first - second) > 0.3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_cache_shows_where_plain_weights_hide_it(measured: Any, fault: str) -> None:
    assert judged(measured, "drawn", fault).outcome is Outcome.FAIL
    assert mean(measured, "drawn", fault) > 0.02
    assert judged(measured, "plain", fault).outcome is not Outcome.FAIL


def test_rounding_is_not_amplified_as_by_branches_that_write_everywhere(measured: Any) -> None:
    # A batch changes next to nothing here, so that without fp32 beside it what else rounding may make is not known.
    assert judged(measured, "drawn", "prefill").outcome is not Outcome.FAIL
    assert judged(measured, "drawn", "rounding").outcome is not Outcome.FAIL
    assert judged(measured, "dense", "rounding").outcome is not Outcome.PASS
    assert mean(measured, "dense", "rounding") > 4 * mean(measured, "drawn", "rounding")


def test_a_cache_of_fp8_lies_between_rounding_and_its_limit(measured: Any) -> None:
    assert judged(measured, "drawn", "fp8", "fp8").outcome is Outcome.PASS
    assert mean(measured, "drawn", "fp8") > 4 * mean(measured, "drawn", "rounding")
    # A cache that stays in bf16 is told: what decoding itself changes is no fp8.
    assert judged(measured, "drawn", "alone", "fp8").outcome is Outcome.FAIL
