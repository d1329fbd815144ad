"""The solved examples of a few-shot prompt: those of the dataset's own training side, in their order, and never a question asked.

The same examples precede every question. lm-evaluation-harness draws five of the training split again for each question
unless its task names the sampler ``first_n``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.datasets.load import GSM8K, SYNTHETIC, load
from pytest_llminfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_llminfer.datasets.gsm8k import Problem

BUNDLED = Path(__file__).resolve().parent / "synthetic_examples.jsonl"
"""Five problems of the synthetic set's validation side (``held_out_set("validation", 5, seed="shots")`` of the tools)."""


def load_examples(source: str, *, shots: int, asked: Iterable[Problem] = ()) -> tuple[Problem, ...]:
    """The first ``shots`` examples for the dataset that ``load(source)`` gives.

    ``synthetic`` has five bundled ones; ``openai/gsm8k`` has its train split, read from the hub; a file has the file ``train``
    with the same ending beside it. asked: the questions of the session, of which none may be an example.

    Raises:
        DatasetError: there are too few, they cannot be read, or one of them is asked.
    """
    if shots == 0:
        return ()
    need = f"{shots}-shot needs examples"
    try:
        found = load(_place(source, need), split=f"train[:{shots}]").problems[:shots]
    except DatasetError as error:
        raise error if str(error).startswith(need) else DatasetError(f"{need}: {error}") from error
    if len(found) < shots:
        raise DatasetError(f"{need}: {shots} solved problems, and {source} has {len(found)} to learn from")
    questions = {" ".join(problem.question.split()) for problem in asked}
    for problem in found:
        if " ".join(problem.question.split()) in questions:
            raise DatasetError(f"{need} that are not asked: {problem.id} is a question of {source}; give other examples")
    return found


def _place(source: str, need: str) -> str:
    if source == SYNTHETIC:
        return str(BUNDLED)
    if source == GSM8K:
        return GSM8K
    asked = Path(source).expanduser()
    beside = asked.with_name(f"train{asked.suffix}")
    if not beside.is_file():
        raise DatasetError(f"{need}: there is no file {beside.absolute()}; put solved problems there, or use zero-shot")
    return str(beside)
