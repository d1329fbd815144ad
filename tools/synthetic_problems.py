"""Synthetic arithmetic word problems in GSM8K's format, split by a hash of the question.

A question belongs to the held-out side if and only if the first byte of the SHA-256 digest of its UTF-8 text is below 4 (one
text in 64). Training streams reject every such text and held-out sets take nothing else, so no question can be on both sides.

Run as a command, it writes a held-out set as JSON lines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from synthetic_money import MONEY_FAMILIES
from synthetic_numbers import DIFFICULTIES, Difficulty, Draw
from synthetic_quantities import QUANTITY_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator

FAMILIES = MONEY_FAMILIES + QUANTITY_FAMILIES
BUNDLED_COUNT = 1000
BUNDLED_SEED = 20240607
BUNDLED_DIFFICULTY = "medium"

SIDES: dict[str, range] = {"validation": range(2), "test": range(2, 4), "training": range(4, 256)}
"""The values of the first digest byte on each side; the first two sides are the held-out ones."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its worked solution, whose last line is ``#### <integer>``."""

    question: str
    answer: str


def side_of(question: str) -> str:
    """Return the side of the partition (``validation``, ``test`` or ``training``) on which a question lies."""
    byte = hashlib.sha256(question.encode()).digest()[0]
    return next(side for side, values in SIDES.items() if byte in values)


def draw_problem(draw: Draw, random_source: random.Random) -> Problem:
    """Draw one problem of a random family, on any side of the partition."""
    question, steps, answer = random_source.choice(FAMILIES)(draw)
    return Problem(question, "\n".join([*steps, f"#### {answer}"]))


def stream(side: str, *, seed: int | str, difficulty: Difficulty) -> Iterator[Problem]:
    """Yield problems of one side without end; equal arguments give equal problems. Texts can recur, rarely."""
    random_source = random.Random(seed)  # noqa: S311 - reproducible data, no secret
    draw = Draw(random_source, difficulty)
    while True:
        problem = draw_problem(draw, random_source)
        if side_of(problem.question) == side:
            yield problem


def held_out_set(side: str, count: int, *, seed: int | str, difficulty: Difficulty) -> list[Problem]:
    """Return the first ``count`` problems of a held-out side that have distinct questions."""
    distinct: dict[str, Problem] = {}
    for problem in stream(side, seed=seed, difficulty=difficulty):
        distinct.setdefault(problem.question, problem)
        if len(distinct) == count:
            break
    return list(distinct.values())


def bundled_lines(count: int = BUNDLED_COUNT, seed: int = BUNDLED_SEED, difficulty: str = BUNDLED_DIFFICULTY) -> str:
    """Return the text of a JSON-lines file of test-side problems with the ids ``syn-0000``, ``syn-0001`` and so on."""
    problems = held_out_set("test", count, seed=seed, difficulty=DIFFICULTIES[difficulty])
    return "".join(
        json.dumps({"id": f"syn-{number:04d}", "question": problem.question, "answer": problem.answer}) + "\n"
        for number, problem in enumerate(problems)
    )


def main() -> None:
    """Write the test-side set that the package bundles; the defaults reproduce it byte for byte."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("pytest_llminfer/datasets/synthetic.jsonl"))
    parser.add_argument("--count", type=int, default=BUNDLED_COUNT, help="number of problems")
    parser.add_argument("--seed", type=int, default=BUNDLED_SEED)
    parser.add_argument("--difficulty", choices=sorted(DIFFICULTIES), default=BUNDLED_DIFFICULTY)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N problems of the training side and stop")
    options = parser.parse_args()
    if options.show:
        training = stream("training", seed=options.seed, difficulty=DIFFICULTIES[options.difficulty])
        for problem in islice(training, options.show):
            print(problem.question, problem.answer, sep="\n", end="\n\n")
        return
    options.output.write_text(bundled_lines(options.count, options.seed, options.difficulty), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
