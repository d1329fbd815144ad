"""Put a dataset's questions to an engine and grade what comes back; pack the outcomes for a record and unpack them."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checks.accuracy import Answer
from pytest_llminfer.datasets.fingerprint import prompts_sha256
from pytest_llminfer.datasets.gsm8k import EXTRACTORS, Problem, grade
from pytest_llminfer.datasets.load import SYNTHETIC, Dataset
from pytest_llminfer.datasets.prompts import ZERO_SHOT
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.observations import Generation, Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.models.model import Model

ORDER_SEED = 20260101
"""Of the fixed permutation: the first n questions are a random sample, and a longer run contains a shorter one."""

CPU_QUESTIONS = 300
MAX_TOKENS = {SYNTHETIC: 256}
DEFAULT_MAX_TOKENS = 512


class QuestionSet:
    """The questions of a dataset in their fixed order, worded for one model.

    ``limit``: how many are asked; None means all on an accelerator and 300 on a CPU.
    """

    def __init__(self, dataset: Dataset, model: Model, limit: int | None) -> None:
        self.dataset, self._model, self._limit = dataset, model, limit
        self.sampling = Sampling(max_tokens=MAX_TOKENS.get(dataset.name, DEFAULT_MAX_TOKENS))

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        return self.dataset.ordered(ORDER_SEED)

    @cached_property
    def _prompts(self) -> list[list[int]]:
        if not self._model.has_tokenizer:
            raise UnsupportedError(f"{self._model.name} has no tokenizer, so it cannot be asked questions")
        texts = [ZERO_SHOT.format(question=problem.question) for problem in self._problems]
        return self._model.encode_many([self._model.render_chat(text) for text in texts] if self._model.chat_template else texts)

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What must be equal for two runs to be compared; the number of questions need not be."""
        return {
            "dataset": self.dataset.name,
            "dataset_sha256": self.dataset.sha256,
            "order_seed": ORDER_SEED,
            "prompts_sha256": prompts_sha256(self._prompts),
            "chat_template_sha256": hashlib.sha256(self._model.chat_template.encode()).hexdigest(),
            "extractors": EXTRACTORS,
            "sampling": self.sampling.to_dict(),
        }

    def count(self, engine: Engine) -> int:
        """How many questions this engine is asked."""
        default = CPU_QUESTIONS if engine.info.device == "cpu" else len(self._problems)
        return min(self._limit or default, len(self._problems))

    def record(self, engine: Engine, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a baseline holds of this run: as many questions as are asked, and no fewer than it held before."""
        count = max(self.count(engine), previous["questions"] if previous else 0)
        return self.pack(self.ask(engine, count))

    def ask(self, engine: Engine, count: int | None = None) -> dict[str, Answer]:
        """The graded answers by question id, in the fixed order; ``count`` of them, or as many as the session asks."""
        count = self.count(engine) if count is None else count
        generations = engine.generate(self._prompts[:count], self.sampling)
        return {
            problem.id: _grade(problem, generation) for problem, generation in zip(self._problems[:count], generations, strict=True)
        }

    def pack(self, answers: Mapping[str, Answer]) -> dict[str, Any]:
        """Outcomes as a record holds them: one digit a question, in the fixed order."""
        packed = {
            entry.name: "".join(str(int(getattr(answer, entry.name))) for answer in answers.values()) for entry in fields(Answer)
        }
        return {"questions": len(answers), **packed}

    def unpack(self, expected: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Answer]:
        """The recorded outcomes of the questions asked now; of all recorded ones where more were asked than recorded."""
        recorded = [problem.id for problem in self._problems[: expected["questions"]]]
        columns = zip(*(expected[entry.name] for entry in fields(Answer)), strict=True)
        answers = {name: Answer(*(digit == "1" for digit in column)) for name, column in zip(recorded, columns, strict=True)}
        return {name: answers[name] for name in ids if name in answers} if len(ids) <= len(answers) else answers


def _grade(problem: Problem, generation: Generation) -> Answer:
    graded = grade(problem, generation.text or "")
    return Answer(
        strict=graded.strict,
        flexible=graded.flexible,
        format_miss=graded.format_miss,
        truncated=generation.finish_reason == "length",
    )
