"""Put a dataset's questions to an engine and grade what comes back; pack the outcomes for a record and unpack them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, fields, replace
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
WARM_UP_PROMPTS, WARM_UP_TOKENS, WARM_UP_ANSWER = 16, 64, 4
MAX_TOKENS = {SYNTHETIC: 256}
DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Answered:
    """The graded answers of one engine by question id, the seconds that all of them took, and the tokens generated."""

    answers: dict[str, Answer]
    seconds: float
    tokens: int

    @property
    def accuracy(self) -> float:
        """The share of right answers, by the flexible reading."""
        return sum(answer.flexible for answer in self.answers.values()) / len(self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over the time of the whole set, prefill included."""
        return self.tokens / self.seconds


class QuestionSet:
    """The questions of a dataset in their fixed order, worded for one model.

    ``limit``: how many are asked; None means all on an accelerator and 300 on a CPU.
    """

    def __init__(self, dataset: Dataset, model: Model, limit: int | None) -> None:
        self.dataset, self._model, self._limit = dataset, model, limit
        self._answered: dict[Engine, Answered] = {}
        self.sampling = Sampling(max_tokens=MAX_TOKENS.get(dataset.name, DEFAULT_MAX_TOKENS))

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        return self.dataset.ordered(ORDER_SEED)

    @cached_property
    def _texts(self) -> list[str]:
        return [ZERO_SHOT.format(question=problem.question) for problem in self._problems]

    @cached_property
    def _prompts(self) -> list[list[int]]:
        if not self._model.has_tokenizer:
            raise UnsupportedError(f"{self._model.name} has no tokenizer, so it cannot be asked questions")
        texts = self._texts
        return self._model.encode_many([self._model.render_chat(text) for text in texts] if self._model.chat_template else texts)

    def prompts(self, engine: Engine, count: int | None = None) -> list[Any]:
        """The first ``count`` prompts: token ids, or conversations for a server that applies a chat template of its own."""
        if engine.supports("generate:messages"):
            return [[{"role": "user", "content": text}] for text in self._texts[:count]]
        return self._prompts[:count]

    def conditions(self, engine: Engine) -> dict[str, Any]:
        """What must be equal for two runs to be compared; the number of questions need not be."""
        if engine.supports("generate:messages"):
            text = "\n".join(self._texts)
            prompts, template = hashlib.sha256(text.encode()).hexdigest(), "the server's"
        else:
            prompts = prompts_sha256(self._prompts)
            template = hashlib.sha256(self._model.chat_template.encode()).hexdigest()
        return {
            "dataset": self.dataset.name,
            "dataset_sha256": self.dataset.sha256,
            "order_seed": ORDER_SEED,
            "prompts_sha256": prompts,
            "chat_template_sha256": template,
            "extractors": EXTRACTORS,
            "sampling": self.sampling.to_dict(),
        }

    def count(self, engine: Engine) -> int:
        """How many questions this engine is asked."""
        default = len(self._problems) if engine.info.device not in ("cpu", "remote") else CPU_QUESTIONS
        return min(self._limit or default, len(self._problems))

    def record(self, engine: Engine, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a baseline holds of this run: as many questions as are asked, and no fewer than it held before."""
        count = max(self.count(engine), previous["questions"] if previous else 0)
        return self.pack(self.ask(engine, count))

    def answered(self, engine: Engine) -> Answered:
        """As many questions as the session asks, put to an engine once however often they are asked for."""
        if engine not in self._answered:
            self._warm_up(engine)
            started = time.perf_counter()
            generations = engine.generate(self.prompts(engine, self.count(engine)), self.sampling)
            seconds = time.perf_counter() - started
            tokens = sum(len(generation.token_ids) for generation in generations)
            self._answered[engine] = Answered(self._graded(generations), seconds, tokens)
        return self._answered[engine]

    def _warm_up(self, engine: Engine) -> None:
        """What an engine compiles for its first batch is no part of the time; other prompts, so that no prefix is cached."""
        if not engine.spec.is_remote:
            prompts = engine.model.sample_prompts(WARM_UP_PROMPTS, WARM_UP_TOKENS)
            engine.generate(prompts, replace(self.sampling, max_tokens=WARM_UP_ANSWER))

    def ask(self, engine: Engine, count: int | None = None) -> dict[str, Answer]:
        """The graded answers by question id, in the fixed order; ``count`` of them, or as many as the session asks."""
        answered = self.answered(engine)
        if count is None or count == len(answered.answers):
            return answered.answers
        return self._graded(engine.generate(self.prompts(engine, count), self.sampling))

    def _graded(self, generations: Sequence[Generation]) -> dict[str, Answer]:
        return {
            problem.id: _grade(problem, generation)
            for problem, generation in zip(self._problems[: len(generations)], generations, strict=True)
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
