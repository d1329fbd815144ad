"""Many past runs against one record, by simulation: when a drift is proven, by two ways of adding past runs up."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import numpy as np
from simulated_questions import Questions

from pytest_llminfer.stats import evalues, exchangeable

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

PIECES = 20  # of a cell's runs and of the histories, so that the cores stay busy
FALSE_ALARMS = 1.0


def past_runs(task: tuple[int, int, float, int, int]) -> tuple[list[int], list[int]]:
    """First past run of proof at alpha .01 by the product, and by the pooled e-value; 0 for never.

    task: histories, past runs, drop, K, seed.
    """
    histories, count, drop, runs, seed = task
    rng, by_product, by_pool = np.random.default_rng(seed), [], []
    for _ in range(histories):
        questions = Questions(rng, 0.03, drop)
        right = np.array(questions.recorded(runs))
        telling = (questions.before % 1 != 0) | (questions.before != questions.after)
        right, product, new = right[telling], 0.0, np.zeros(int(telling.sum()), dtype=int)
        found = {"product": 0, "pool": 0}
        judged = evalues.judged_runs(count)
        for past_run in range(1, count + 1):
            outcomes = np.array(questions.new())[telling]
            product += evalues.log_e(exchangeable.tally(right.tolist(), runs, outcomes.tolist()))
            new += outcomes
            if not found["product"] and product >= -math.log(0.01):
                found["product"] = past_run
            if not found["pool"] and past_run in judged:
                pooled = evalues.pooled_log_e(right.tolist(), runs, [past_run] * len(right), new.tolist())
                if pooled >= evalues.log_e_needed(judged.index(past_run) + 1, 0.01):
                    found["pool"] = past_run
            if drop and all(found.values()):
                break
        by_product.append(found["product"])
        by_pool.append(found["pool"])
    return by_product, by_pool


def drifts(pool: ProcessPoolExecutor, histories: int) -> int:
    """Table 4; how many of its numbers are out of bounds."""
    wrong = 0
    for runs, drop in ((1, 0.0), (4, 0.0), (4, 0.005), (4, 0.01), (4, 0.02)):
        tasks = [(histories // PIECES, 90, drop, runs, seed) for seed in range(1000, 1000 + PIECES)]
        parts = list(pool.map(past_runs, tasks))
        for name, column in (("plain product", 0), ("pooled", 1)):
            first = [past_run for part in parts for past_run in part[column]]
            proven = [past_run or math.inf for past_run in first]
            share = 100 * sum(past_run > 0 for past_run in first) / len(first)
            error = 100 * math.sqrt((share / 100 + 1e-3) * (1 - share / 100 + 1e-3) / len(first))
            text = f"K={runs} drift {100 * drop:g} points, {name}: proven within 90 past runs {share:.1f} ±{error:.1f} %"
            if drop:
                text += f", median past run {statistics.median(proven):g}"
            elif column and share > FALSE_ALARMS + 2 * error:
                text, wrong = f"{text} FALSE ALARMS", wrong + 1
            print(text, flush=True)
    return wrong
