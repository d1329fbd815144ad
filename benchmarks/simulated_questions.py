"""Model A (docs/methods.md#model-a): questions with their probabilities of a right answer, and runs with and without a drop."""

from __future__ import annotations

import numpy as np

N, RIGHT_SHARE = 1319, 0.80


class Questions:
    """How likely each of the 1,319 questions is right, drawn anew, and runs over them."""

    def __init__(self, rng: np.random.Generator, discordance: float, drop: float) -> None:
        self._rng = rng
        flippy = 3 * discordance
        kind, level = rng.random(N), rng.random(N)
        always = (RIGHT_SHARE - flippy / 2) / (1 - flippy)
        stable = (level < always).astype(float)
        self.before = np.where(kind < flippy, level, stable)
        lost = (kind >= flippy) & (stable == 1) & (rng.random(N) < drop / (always * (1 - flippy)))
        self.after = np.where(lost, 0.0, self.before)

    def recorded(self, runs: int) -> list[int]:
        """Right answers of each question in ``runs`` runs without the drop."""
        return [int(count) for count in self._rng.binomial(runs, self.before)]

    def new(self) -> list[bool]:
        """One run with the drop."""
        return [bool(right) for right in self._rng.random(N) < self.after]
