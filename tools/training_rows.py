"""Training rows of the reference model: problems in every form that the harness sends, batched by length.

Each generator process has a queue of its own and the trainer takes from the queues in turn, so the order of the batches
depends on the seed and on the number of processes alone.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from reference_tokenizer import PAD, TURN_END, TURN_START, CachedEncoder, token_id
from synthetic_numbers import DIFFICULTIES
from synthetic_problems import Problem, stream
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_llminfer.datasets.prompts import FEW_SHOT_EXAMPLE, ZERO_SHOT

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from multiprocessing.queues import Queue

FORMS: dict[str, float] = {"zero-shot": 0.86, "bare": 0.05, "system": 0.06, "few-shot": 0.03}
"""Share of the rows in each form. A few-shot row holds six problems, so that form has about 16 % of the problems."""

FEW_SHOT_PROBLEMS = 6
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a careful math tutor.",
    "Answer the question.",
    "You solve arithmetic word problems.",
    "Think step by step.",
)


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one row, and whether each is a target of the loss."""

    ids: list[int]
    is_target: list[bool]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of about one length.

    ``tokens`` is (rows, width) int16, padded on the right; ``positions`` indexes the flattened tokens whose successor is a
    target, and ``targets`` holds the successors. ``real_tokens`` counts tokens without padding, ``problems`` the solutions.
    """

    tokens: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    real_tokens: int
    problems: int


class RowWriter:
    """Turns problems into rows."""

    def __init__(self, tokenizer: Tokenizer, random_source: random.Random) -> None:
        self._encode = CachedEncoder(tokenizer)
        self._random = random_source
        self._start, self._end = token_id(tokenizer, TURN_START), token_id(tokenizer, TURN_END)

    def row(self, problems: Iterator[Problem]) -> tuple[Row, int]:
        """Return a row of a random form and the number of problems in it."""
        form = self._random.choices(list(FORMS), weights=list(FORMS.values()))[0]
        if form == "few-shot":
            return self.few_shot([next(problems) for _ in range(FEW_SHOT_PROBLEMS)]), FEW_SHOT_PROBLEMS
        problem = next(problems)
        system = self._random.choice(SYSTEM_MESSAGES) if form == "system" else None
        content = problem.question if form == "bare" else ZERO_SHOT.format(question=problem.question)
        return self.chat(content, problem.answer, system), 1

    def chat(self, content: str, answer: str, system: str | None = None) -> Row:
        """Return one exchange of the chat template; the answer and the end of its turn are targets."""
        turns = [] if system is None else [("system", system)]
        ids: list[int] = []
        for role, text in [*turns, ("user", content)]:
            ids += [self._start, *self._encode(f"{role}\n{text}"), self._end, *self._encode("\n")]
        ids += [self._start, *self._encode("assistant\n")]
        answer_ids = [*self._encode(answer), self._end]
        return Row(ids + answer_ids, [False] * len(ids) + [True] * len(answer_ids))

    def few_shot(self, problems: list[Problem]) -> Row:
        """Return solved examples joined by blank lines; every answer and the token that ends it are targets."""
        ids: list[int] = []
        is_target: list[bool] = []
        for number, problem in enumerate(problems):
            example = FEW_SHOT_EXAMPLE.format(question=problem.question, answer=problem.answer)
            cut = len(example) - len(problem.answer) - 1
            question_ids, answer_ids = self._encode(example[:cut]), self._encode(example[cut:])
            last = number == len(problems) - 1
            gap = [self._end] if last else self._encode("\n\nQ")[:2]
            ids += [*question_ids, *answer_ids, *gap]
            is_target += [False] * len(question_ids) + [True] * (len(answer_ids) + 1) + [False] * (len(gap) - 1)
        return Row(ids, is_target)


def make_batch(rows: list[Row], *, width: int, pad: int, problems: int) -> Batch:
    """Pad rows to ``width`` and list what the loss needs."""
    tokens = np.full((len(rows), width), pad, dtype=np.int16)
    mask = np.zeros((len(rows), width), dtype=bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row.ids)] = row.ids
        mask[number, : len(row.ids)] = row.is_target
    successors = np.flatnonzero(mask)
    return Batch(tokens, (successors - 1).astype(np.int32), tokens.ravel()[successors], sum(len(row.ids) for row in rows), problems)


def generate_batches(tokenizer_json: str, *, seed: str, difficulty: str, batch_tokens: int) -> Iterator[Batch]:
    """Yield batches of at most ``batch_tokens`` tokens, padding included, without end."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    writer = RowWriter(tokenizer, random.Random(f"{seed}-forms"))  # noqa: S311 - reproducible data
    problems = stream("training", seed=f"{seed}-problems", difficulty=DIFFICULTIES[difficulty])
    pad = token_id(tokenizer, PAD)
    waiting: dict[int, list[Row]] = {}
    solutions: dict[int, int] = {}
    while True:
        row, count = writer.row(problems)
        step = 8 if count == 1 else 64
        width = -(-len(row.ids) // step) * step
        waiting.setdefault(width, []).append(row)
        solutions[width] = solutions.get(width, 0) + count
        if (len(waiting[width]) + 1) * width > batch_tokens:
            yield make_batch(waiting.pop(width), width=width, pad=pad, problems=solutions.pop(width))


def _feed(queue: Queue[Batch], tokenizer_json: str, seed: str, difficulty: str, batch_tokens: int) -> None:
    for batch in generate_batches(tokenizer_json, seed=seed, difficulty=difficulty, batch_tokens=batch_tokens):
        queue.put(batch)


def batches_in_turn(
    tokenizer_json: str, *, seed: int, difficulty: str, batch_tokens: int, processes: int
) -> Generator[Batch, None, None]:
    """Yield the batches of several generator processes in turn; closing the iterator ends the processes."""
    context = multiprocessing.get_context("spawn")
    queues: list[Queue[Batch]] = [context.Queue(maxsize=4) for _ in range(processes)]
    workers = [
        context.Process(target=_feed, args=(queue, tokenizer_json, f"{seed}-{number}", difficulty, batch_tokens), daemon=True)
        for number, queue in enumerate(queues)
    ]
    for worker in workers:
        worker.start()
    try:
        while True:
            for queue in queues:
                yield queue.get(timeout=120)
    finally:
        for worker in workers:
            worker.terminate()
