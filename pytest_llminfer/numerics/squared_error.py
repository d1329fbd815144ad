"""How far a prediction is from what the same weights give without rounding (docs/methods.md#served-dtype)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pytest_llminfer.observations.generation import Scores

SMALLEST = 1e-12
"""Nats squared: log-probabilities come in float32, which alone rounds those of -10 by up to 5e-7. Added on both sides of
a ratio."""


def squared_errors(scores: Scores, exact: np.ndarray) -> np.ndarray:
    """Per position the mean squared error in nats², float64 (T,), over the tokens that ``scores`` lists.

    exact: float64 (T, k), the unrounded log-probabilities of the tokens ``scores.top_ids``. Errors are centred over the tokens of
    a position, so that they are those of logits, whatever the rest of the vocabulary does; with a single token they are not.
    Every mode is measured over its own list: a benign one chooses its tokens as the other does.
    """
    errors = scores.top_logprobs.astype(np.float64) - exact
    if errors.shape[1] > 1:
        errors = errors - errors.mean(axis=1, keepdims=True)
    return np.asarray(np.square(errors).mean(axis=1))
