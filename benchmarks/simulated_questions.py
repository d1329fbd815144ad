"""Questions with their probabilities of a right answer, recorded runs and new ones (docs/methods.md#model-a), as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

N, RIGHT_SHARE = 1319, 0.80


@dataclass(frozen=True, slots=True)
class Noise:
    """How runs differ though nothing regressed, as shares of all questions in which two outcomes differ.

    recorded: recorded runs among themselves: three times as many questions are right with a probability drawn evenly from 0 to 1,
    the others always or never. 0 for copies, as of an engine that repeats itself. rerolled: what a new run differs in on top of
    that: twice as many near ties are decided one way in all recorded runs, and anew, by a fair coin, in the new one, as another
    kernel, driver or version decides them. redrawn: whether the flippy questions have other probabilities in the new run too.
    """

    recorded: float
    rerolled: float = 0.0
    redrawn: bool = False


class Questions:
    """How likely each question is right before and after a drop (a share), which turns always-right questions wrong."""

    def __init__(self, rng: np.random.Generator, noise: Noise, drop: float = 0.0, n: int = N) -> None:
        self._rng, self.n = rng, n
        flippy, ties = 3 * noise.recorded, 2 * noise.rerolled
        kind, level = rng.random(n), rng.random(n)
        is_flippy, is_tie = kind < flippy, (kind >= flippy) & (kind < flippy + ties)
        always = (RIGHT_SHARE - (flippy + ties) / 2) / (1 - flippy - ties)
        self.before = np.where(is_flippy, level, level < always)
        self.before[is_tie] = level[is_tie] < 1 / 2
        after = self.before.copy()
        after[is_tie] = rng.random(int(is_tie.sum())) < 1 / 2
        if noise.redrawn:
            after[is_flippy] = rng.random(int(is_flippy.sum()))
        stable = ~is_flippy & ~is_tie & (self.before == 1)
        after[stable & (rng.random(n) < drop / (always * (1 - flippy - ties)))] = 0.0
        self.after = after

    def recorded(self, runs: int) -> NDArray[np.int64]:
        """Right answers of each question in ``runs`` runs without the drop."""
        return self._rng.binomial(runs, self.before)

    def new(self) -> NDArray[np.bool_]:
        """One run with the drop, and with near ties as they now fall."""
        return np.asarray(self._rng.random(self.n) < self.after)
