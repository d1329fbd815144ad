"""Real models beside their own weights in fp32: benign execution modes pass, a faulty cache does not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.families.execution_modes.rounding import Errors, check_rounding
from pytest_llminfer.verdict import Outcome
from tests.support.paths import PROGRAMS

PROGRAM = PROGRAMS / "unrounded.py"
DEPTHS = ("2", "6")


@pytest.fixture(scope="module")
def measured() -> Any:
    """By depth, what the program prints."""
    done = subprocess.run([sys.executable, PROGRAM], check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize(
    ("mode", "outcome"),
    [
        *(("decode", Outcome.PASS), ("alone", Outcome.PASS)),
        *(("wrong block", Outcome.FAIL), ("shifted", Outcome.FAIL), ("e4m3", Outcome.FAIL)),
    ],
)
def test_rounding_passes_and_a_faulty_cache_fails(measured: Any, layers: str, mode: str, outcome: Outcome) -> None:
    errors = {name: [np.array(row) for row in rows] for name, rows in measured[layers]["errors"].items()}
    verdict = check_rounding(errors=Errors(errors[mode], errors["prefill"], "beside fp32"), dtype="bf16", claim=mode)
    assert verdict.outcome is outcome, str(verdict)


@pytest.mark.parametrize("layers", DEPTHS)
def test_block_by_block_gives_what_an_fp32_copy_gives_and_leaves_the_model_as_it_was(measured: Any, layers: str) -> None:
    assert measured[layers]["restored"]
    assert measured[layers]["from_copy"] < 1e-4
