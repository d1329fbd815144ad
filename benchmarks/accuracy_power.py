"""False alarms, wrong passes, power and questions asked of the accuracy gate that the suites use, by simulation.

Each simulated run is a new record and a new run over 1,319 questions (300 or 1,000 where said) of which 80 % are right, asked in an
order drawn at random and judged by ``stats/decision.py`` itself. ``simulated_questions.py`` says how outcomes differ though nothing
regressed: by the noise that the record shows (docs/methods.md#model-a), and by near ties that a new kernel decides anew. The last
table is of 90 past runs against one record, also of an engine that repeats one draw.

``power_of_shipped.json`` holds what an earlier run came to (``--pin`` writes it); docs/methods.md prints it. Ends with status 1
where FAIL without a drop exceeds 1 % or PASS at a drop of the margin 5 %, by more than two standard errors of the simulation, or
where a number has moved by more than four.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from simulated_past_runs import PIECES, drifts
from simulated_runs import Setting, judge, settings

PINNED = Path(__file__).with_name("power_of_shipped.json")
"""Setting -> {"fail", "pass", "undecided" (% of runs), "asked"}: [value, its standard error]."""

FALSE_ALARMS, WRONG_PASSES = 1.0, 5.0
"""Percent of runs that the gate claims at most."""

COLUMNS = ("fail", "pass", "undecided", "asked")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the simulated runs of one setting came to."""

    outcomes: Counter[str]
    asked: int
    asked_squares: int

    @property
    def runs(self) -> int:
        """How many there were."""
        return self.outcomes.total()

    def value(self, name: str) -> float:
        """The mean of the questions asked, or a percentage of the runs."""
        return self.asked / self.runs if name == "asked" else 100 * self.outcomes[name] / self.runs

    def error(self, name: str) -> float:
        """The standard error of :meth:`value`; of a percentage with one run of each kind added, so that it is never zero."""
        if name == "asked":
            return math.sqrt(max(0.0, self.asked_squares / self.runs - self.value(name) ** 2) / self.runs)
        share = (self.outcomes[name] + 1) / (self.runs + 2)
        return 100 * math.sqrt(share * (1 - share) / self.runs)

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.outcomes + other.outcomes, self.asked + other.asked, self.asked_squares + other.asked_squares)


def simulate(task: tuple[Setting, int, int]) -> Seen:
    """``runs`` runs of a setting, from one seed."""
    setting, runs, seed = task
    rng, outcomes, asked, squares = np.random.default_rng(seed), Counter[str](), 0, 0
    for _ in range(runs):
        outcome, questions = judge(setting, rng)
        outcomes[outcome] += 1
        asked, squares = asked + questions, squares + questions**2
    return Seen(outcomes, asked, squares)


def out_of_bounds(setting: Setting, seen: Seen, pinned: dict[str, list[float]]) -> list[str]:
    """What is wrong with the numbers of one setting, in words."""
    found = [
        f"{name} MOVED from {pinned[name][0]:g}"
        for name in pinned
        if abs(seen.value(name) - pinned[name][0]) > 4 * math.hypot(seen.error(name), pinned[name][1])
    ]
    if setting.alone:
        return found
    harmless = setting.drop <= (setting.margin if setting.tolerated else 0.0)
    if harmless and seen.value("fail") > FALSE_ALARMS + 2 * seen.error("fail"):
        found.append("FALSE ALARMS")
    if 0 < setting.margin <= setting.drop and seen.value("pass") > WRONG_PASSES + 2 * seen.error("pass"):
        found.append("WRONG PASSES")
    return found


def table(pool: ProcessPoolExecutor, title: str, rows: list[Setting], runs: int, seeds: Any) -> tuple[int, dict[str, Seen]]:
    """Print one table; how many of its rows are out of bounds, and what each setting came to."""
    pinned = json.loads(PINNED.read_text()) if PINNED.is_file() else {}
    print(f"\n{title}: % of runs ± standard error, questions asked", flush=True)
    tasks = [(setting, runs // PIECES, next(seeds)) for setting in rows for _ in range(PIECES)]
    done, wrong, found = pool.map(simulate, tasks, chunksize=2), 0, {}
    for setting in rows:
        seen = Seen(Counter(), 0, 0)
        for _ in range(PIECES):
            seen = seen + next(done)
        found[str(setting)] = seen
        off = out_of_bounds(setting, seen, pinned.get(str(setting), {}))
        wrong += bool(off)
        columns = (f"{name} {seen.value(name):.2f} ±{seen.error(name):.2f}" for name in COLUMNS)
        print(" | ".join([str(setting), *columns, *off]), flush=True)
    return wrong, found


def main(arguments: Any) -> int:
    """The tables asked for; how many of their rows are out of bounds."""
    started, seeds, wrong = time.perf_counter(), itertools.count(arguments.seed), 0
    print(f"{arguments.runs:,} runs a setting, alpha .01")
    tables = settings()
    found: dict[Any, Any] = {}
    with ProcessPoolExecutor(arguments.processes) as pool:
        for number, (title, rows) in enumerate(tables.items(), 1):
            if number in arguments.tables:
                off, seen = table(pool, f"Table {number}, {title}", rows, arguments.runs, seeds)
                wrong, found = wrong + off, found | seen
        if len(tables) + 1 in arguments.tables:
            print(f"\nTable {len(tables) + 1}: 90 past runs against one record, alpha .01")
            wrong += drifts(pool, max(PIECES, arguments.runs // 5))
    if arguments.pin:
        pinned = {
            setting: {name: [round(seen.value(name), 2), round(seen.error(name), 2)] for name in COLUMNS}
            for setting, seen in found.items()
        }
        PINNED.write_text(json.dumps(pinned, indent=1) + "\n")
    print(f"\n{wrong} rows out of bounds; {time.perf_counter() - started:.0f} s")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="simulated runs of a setting (a multiple of 20)")
    parser.add_argument("--tables", type=int, nargs="+", default=range(1, 7), help="which of the six, all by default")
    parser.add_argument("--pin", action="store_true", help=f"write tables 1 to 5 to {PINNED.name}")
    parser.add_argument("--processes", type=int, default=None, help="all cores by default")
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(main(parser.parse_args()) > 0)
