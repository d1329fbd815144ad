"""Predictions that nothing could move are not compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.execution_modes.texts import FLATTEST, refuse_flat
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.spec import EngineSpec

ENGINE: Any = SimpleNamespace(spec=EngineSpec("vllm", weights="dummy"))


def answers(spread: float, positions: int = 6) -> list[Generation]:
    """Twenty listed tokens a position, ``spread`` nats from the first to the last."""
    logprobs = np.broadcast_to(np.linspace(-3, -3 - spread, 20, dtype=np.float32), (positions, 20))
    ids = np.broadcast_to(np.arange(20, dtype=np.int32), (positions, 20))
    return [Generation((0,) * positions, "length", top_ids=ids, top_logprobs=logprobs)]


def test_flat_predictions_are_a_visible_skip_with_the_number() -> None:
    with pytest.raises(UnsupportedError, match=r"lie within 1e-05 nats .* give weights that were trained"):
        refuse_flat(ENGINE, answers(1e-5))


def test_predictions_that_say_something_are_compared() -> None:
    refuse_flat(ENGINE, answers(2 * FLATTEST))
    # Some flat positions are no flat model.
    refuse_flat(ENGINE, [*answers(1e-5, 3), *answers(5.0, 6)])


def test_an_engine_without_probabilities_is_judged_elsewhere() -> None:
    refuse_flat(ENGINE, [Generation((1, 2), "length")])
