"""Resampling of prompts, not of tokens, because the tokens of one text hang together (docs/methods.md#truncated-kl)."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2_000
SEED = 20260101
LEVEL = 0.99
"""Of a limit, one-sided: the true mean lies beyond it once in a hundred."""


def resampled_means(*columns: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> list[np.ndarray]:
    """Means (resamples,) of each column (n,) over the same draws of n rows with replacement: pairs stay pairs.

    Efron and Tibshirani, An Introduction to the Bootstrap, chapters 6 and 13.
    """
    count = len(columns[0])
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    return [np.asarray(column, np.float64)[drawn].mean(axis=1) for column in columns]


def limits(means: np.ndarray) -> tuple[float, float]:
    """The lower and the upper 99 % limit, each one-sided: quantiles of the resampled values."""
    low, high = np.quantile(means, [1 - LEVEL, LEVEL])
    return float(low), float(high)
