"""Codebooks of blockwise quantization: NF4's definition, the best for given numbers, and losses (docs/methods.md#codebooks)."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

NF4_OFFSET = 1 - (1 / 30 + 1 / 32) / 2
"""Where the outermost quantile lies: half way between those that 15 and 16 codes would have (bitsandbytes, create_normal_map)."""

FP4 = (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""The magnitudes of bitsandbytes' 4-bit floats, of which the largest stands for 1 (docs/methods.md#codebooks)."""


def nf4() -> np.ndarray:
    """The 16 values, float64, ascending: normal quantiles, 8 above zero and 7 below, scaled to 1 (arXiv 2305.14314, 3)."""
    quantile = NormalDist().inv_cdf
    above = [quantile(float(p)) for p in np.linspace(NF4_OFFSET, 0.5, 9)[:-1]]
    below = [-quantile(float(p)) for p in np.linspace(NF4_OFFSET, 0.5, 8)[:-1]]
    values = np.array(sorted([*above, 0.0, *below]))
    return np.asarray(values / values.max())


def fp4() -> np.ndarray:
    """The 15 different values of bitsandbytes' 4-bit floats, ascending, float64."""
    positive = np.array(FP4) / max(FP4)
    return np.unique(np.concatenate([-positive, positive]))


def even(bits: int) -> np.ndarray:
    """Evenly spaced codes from -1 to 1 with one at zero: 2^bits - 1 of them, float64."""
    most = 2 ** (bits - 1) - 1
    return np.asarray(np.arange(-most, most + 1) / most)


def int8() -> np.ndarray:
    """Of 8 bits a value and one scale a row, as LLM.int8() stores weights (arXiv 2208.07339, 2.1)."""
    return even(8)


def scaled(values: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """``values`` in runs of ``block`` over the largest magnitude of each: ((n, block), (n, 1)). block: 0 for rows of a matrix.

    Raises:
        ValueError: a number of values that is no multiple of the block.
    """
    if block and values.size % block:
        raise ValueError(f"{values.size} values are no multiple of {block}")
    runs = np.asarray(values, np.float64).reshape(-1, block) if block else np.asarray(values, np.float64)
    largest = np.abs(runs).max(axis=1, keepdims=True)
    return runs / np.where(largest == 0, 1, largest), largest


def loss(values: np.ndarray, codes: np.ndarray, block: int) -> float:
    """The RMS error over the RMS of ``values``, each stored as the nearest of ``codes`` times its block's largest magnitude."""
    runs, largest = scaled(values, block)
    difference = (_nearest(runs, codes) - runs) * largest
    return float(np.sqrt((difference**2).mean() / (np.asarray(values, np.float64) ** 2).mean()))


def best(values: np.ndarray, *, levels: int, block: int, rounds: int = 60) -> np.ndarray:
    """The codes (levels,) that lose least of ``values`` (Lloyd, 1982: k-means in one dimension, weighted by scale squared).

    The best of three starts: quantiles, even steps, and even steps with one code at zero beside another one, since no round
    loses more than what it began with. float64, ascending. The optimum is that of a histogram of 8,192 bins.
    """
    runs, largest = scaled(values, block)
    weights = np.broadcast_to(largest**2, runs.shape)
    edges = np.linspace(-1, 1, 8_193)
    weight, _ = np.histogram(runs, edges, weights=weights)
    total, _ = np.histogram(runs, edges, weights=weights * runs)
    centres = np.divide(total, weight, out=(edges[:-1] + edges[1:]) / 2, where=weight > 0)
    quantiles = np.interp((np.arange(levels) + 0.5) / levels, np.cumsum(weight) / weight.sum(), centres)
    with_zero = np.sort(np.append(np.linspace(-1, 1, levels - 1), 1 / levels))
    found = [_lloyd(centres, weight, start, rounds) for start in (quantiles, np.linspace(-1, 1, levels), with_zero)]
    return min(found, key=lambda codes: loss(values, codes, block))


def _lloyd(centres: np.ndarray, weight: np.ndarray, codes: np.ndarray, rounds: int) -> np.ndarray:
    """Codes moved ``rounds`` times to the centre of what is nearest to them."""
    levels = len(codes)
    for _ in range(rounds):
        which = np.searchsorted((codes[:-1] + codes[1:]) / 2, centres)
        mass = np.bincount(which, weights=weight, minlength=levels)
        moment = np.bincount(which, weights=weight * centres, minlength=levels)
        codes = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), codes)
    return np.sort(codes)


def _nearest(runs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.asarray(codes[np.searchsorted((codes[:-1] + codes[1:]) / 2, runs)])
