"""Many past runs against one record, by simulation: how many histories are called drifting, and when."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from simulated_questions import Noise, Questions

from pytest_llminfer.stats import evalues

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

PIECES = 20  # of a setting's runs and of the histories, so that the cores stay busy
FALSE_ALARMS = 1.0


@dataclass(frozen=True, slots=True)
class History:
    """K recorded runs, noise, a drift (a share); frozen: every past run repeats the first, as a deterministic engine does."""

    runs: int
    noise: Noise
    drop: float = 0.0
    frozen: bool = False
    past_runs: int = 90

    def __str__(self) -> str:
        words = f"K={self.runs} d={100 * self.noise.recorded:g} rerolled={100 * self.noise.rerolled:g} drift={100 * self.drop:g}"
        return words + " frozen" * self.frozen


HISTORIES = (
    History(1, Noise(0.03)),
    History(4, Noise(0.03)),
    History(4, Noise(0.03), frozen=True),
    History(1, Noise(0.03), frozen=True),
    History(4, Noise(0.0, 0.03)),
    History(4, Noise(0.0, 0.03), frozen=True),
    History(4, Noise(0.011, 0.05, redrawn=True)),
    History(4, Noise(0.03), 0.005),
    History(4, Noise(0.03), 0.01),
    History(4, Noise(0.03), 0.02),
    History(4, Noise(0.03), 0.02, frozen=True),
)
POOLED, BOTH = "pooled e-value alone", "pooled e-value and questions"


def first_proofs(task: tuple[History, int, int]) -> dict[str, list[int]]:
    """By rule the first past run of proof at alpha .01 in each of so many histories, 0 for never; the last entry is a seed.

    The new run of a history decides re-rolled near ties once: they stay as they then fall.
    """
    history, count, seed = task
    rng = np.random.default_rng(seed)
    found: dict[str, list[int]] = {POOLED: [], BOTH: []}
    judged = evalues.judged_runs(history.past_runs)
    for _ in range(count):
        questions = Questions(rng, history.noise, history.drop)
        right = questions.recorded(history.runs)
        telling = (questions.before % 1 != 0) | (questions.before != questions.after)
        right, new = right[telling].tolist(), np.zeros(int(telling.sum()), dtype=int)
        outcomes, first = questions.new()[telling], dict.fromkeys(found, 0)
        for number in range(1, history.past_runs + 1):
            new += outcomes
            if not history.frozen:
                outcomes = questions.new()[telling]
            if number not in judged:
                continue
            needed, asked = evalues.log_e_needed(judged.index(number) + 1, 0.01), [number] * len(right)
            if evalues.pooled_log_e(right, history.runs, asked, new.tolist()) >= needed:
                first[POOLED] = first[POOLED] or number
                if evalues.p_value_of_questions(right, history.runs, asked, new.tolist()) <= math.exp(-needed):
                    first[BOTH] = number
                    break
        for rule, number in first.items():
            found[rule].append(number)
    return found


def drifts(pool: ProcessPoolExecutor, histories: int) -> int:
    """Print the table; how many of its rows are out of bounds."""
    wrong = 0
    for history in HISTORIES:
        tasks = [(history, histories // PIECES, seed) for seed in range(1000, 1000 + PIECES)]
        parts = list(pool.map(first_proofs, tasks))
        columns = []
        for rule in (POOLED, BOTH):
            first = [number for part in parts for number in part[rule]]
            share = 100 * sum(number > 0 for number in first) / len(first)
            error = 100 * math.sqrt((share / 100 + 1e-3) * (1 - share / 100 + 1e-3) / len(first))
            text = f"{rule}: {share:.1f} ±{error:.1f} %"
            if history.drop:
                text += f", median past run {statistics.median(number or math.inf for number in first):g}"
            elif rule == BOTH and share > FALSE_ALARMS + 2 * error:
                text, wrong = f"{text} FALSE ALARMS", wrong + 1
            columns.append(text)
        print(" | ".join([str(history), *columns]), flush=True)
    return wrong
