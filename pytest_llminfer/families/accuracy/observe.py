"""Put a dataset's questions to an engine and grade what comes back: in pieces, in any order, each question once."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_llminfer.datasets.few_shot import load_examples
from pytest_llminfer.datasets.fingerprint import prompts_sha256
from pytest_llminfer.datasets.gsm8k import EXTRACTORS, Problem, grade
from pytest_llminfer.datasets.load import SYNTHETIC, Dataset
from pytest_llminfer.datasets.prompts import FORMS, PromptForm
from pytest_llminfer.errors import InvalidSpecError, UnsupportedError
from pytest_llminfer.families.accuracy import sampler
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.record import ORDER_SEED, pack
from pytest_llminfer.observations.generation import Generation, Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.models.model import Model

CPU_QUESTIONS = 300
RUNS = 4
"""Of a baseline: more gain little (docs/methods.md#sizes)."""
WARM_UP_PROMPTS, WARM_UP_TOKENS, WARM_UP_ANSWER = 16, 64, 4
WATCHED = 100
"""How many questions are asked with log-probabilities, to see whether another sampler acts: with all of them transformers takes
1 to 2 % more time, llama.cpp 5 % and vLLM more than that, on the reference model. Whole chunks: the first of 1,000 or more."""
MAX_TOKENS = {SYNTHETIC: 256}
DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Answered:
    """The graded answers of one engine.

    Attributes:
        answers: Question id to what became of it.
        seconds: How long all of them took together.
    """

    answers: dict[str, Answer]
    seconds: float

    @property
    def tokens(self) -> int:
        """Generated tokens of all answers."""
        return sum(answer.tokens for answer in self.answers.values())

    @property
    def accuracy(self) -> float:
        """The share of right answers, by the flexible reading."""
        return sum(answer.flexible for answer in self.answers.values()) / len(self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over the time of the whole set, prefill included."""
        return self.tokens / self.seconds


class Asking:
    """What one engine has answered so far. A question is put to it once, however often it is asked for.

    ``whole``: everything is asked at once as soon as anything is, so that the time of all of it can be compared with that of
    other cells.
    """

    def __init__(self, questions: QuestionSet, engine: Engine, *, whole: bool) -> None:
        self._questions, self._engine, self._whole = questions, engine, whole
        self._answers: dict[str, Answer] = {}
        self._seconds = 0.0

    def ask(self, ids: Sequence[str], following: Sequence[str] = ()) -> Answered:
        """The answers to the questions with these ids, in their order; the seconds are those of all that was asked so far.

        ``following``: asked along where fewer are left than are to be in flight at once.
        """
        wanted = self._questions.ids(self._engine) if self._whole else ids
        missing = [name for name in dict.fromkeys([*wanted, *ids]) if name not in self._answers]
        if missing:
            if at_once := self._questions.concurrency:
                more = [name for name in following if name not in self._answers and name not in missing]
                missing += more[: -len(missing) % at_once]
            if not self._answers:
                self._warm_up()
            started = time.perf_counter()
            fresh = self._questions.graded(self._engine, missing, watched=len(self._answers) < WATCHED)
            self._seconds += time.perf_counter() - started
            self._answers |= fresh
        return Answered({name: self._answers[name] for name in ids}, self._seconds)

    def some(self) -> Answered:
        """What was answered so far; all questions where nothing was, or where times are compared."""
        if self._whole or not self._answers:
            return self.ask(self._questions.ids(self._engine))
        return Answered(dict(self._answers), self._seconds)

    def _warm_up(self) -> None:
        """What an engine compiles for its first batch is no part of the time; other prompts, so that no prefix is cached."""
        if not self._engine.spec.is_remote:
            model, prompts = self._engine.model, self._engine.model.sample_prompts(WARM_UP_PROMPTS, WARM_UP_TOKENS)
            if model.has_tokenizer:
                # As it would write them: some servers take text only.
                prompts = [model.encode(model.decode(ids)) for ids in prompts]
            self._engine.generate(prompts, replace(self._questions.sampling, max_tokens=WARM_UP_ANSWER))


class QuestionSet:
    """The questions of a dataset in their fixed order, worded for one model.

    ``limit``: how many are asked; None means all on an accelerator and 300 on a CPU. ``runs``: how often each is asked for a
    record. ``form``: of ``datasets.prompts.FORMS``; ``source``: the dataset's name or path, where solved examples are looked for.
    ``concurrency``: how many are put to the engine at once; None for as many as are wanted. ``whole``: whether all are asked as
    soon as one is, so that times can be compared between cells.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: Model,
        limit: int | None,
        *,
        source: str = SYNTHETIC,
        runs: int = RUNS,
        form: str = "zero-shot",
        concurrency: int | None = None,
        whole: bool = False,
    ) -> None:
        if form not in FORMS:
            raise InvalidSpecError("form of a question", form, FORMS)
        self.dataset, self._model, self._limit, self.runs, self.concurrency = dataset, model, limit, runs, concurrency
        self._form: PromptForm = FORMS[form]
        self._source = source
        self._whole = whole
        self._asking: dict[Engine, Asking] = {}
        self.sampling = Sampling(max_tokens=MAX_TOKENS.get(dataset.name, DEFAULT_MAX_TOKENS))

    @cached_property
    def _problems(self) -> dict[str, Problem]:
        return {problem.id: problem for problem in self.dataset.ordered(ORDER_SEED)}

    @cached_property
    def _examples(self) -> tuple[Problem, ...]:
        return load_examples(self._source, shots=self._form.shots, asked=self.dataset.problems)

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {name: self._form.word(problem.question, self._examples) for name, problem in self._problems.items()}

    @cached_property
    def _prompts(self) -> dict[str, list[int]]:
        if not self._model.has_tokenizer:
            raise UnsupportedError(
                f"{self._model.name} has no tokenizer, so it cannot be asked questions",
                "put tokenizer.json beside its config.json, or give another model",
            )
        texts = list(self._texts.values())
        if self._form.chat and self._model.chat_template:
            texts = [self._model.render_chat(text) for text in texts]
        return dict(zip(self._texts, self._model.encode_many(texts, start=not self._form.chat), strict=True))

    def conditions(self, engine: Engine) -> dict[str, Any]:
        """What must be equal for two runs to be compared; the number of questions need not be."""
        if self._by_messages(engine):
            text = "\n".join(self._texts.values())
            prompts, template = hashlib.sha256(text.encode()).hexdigest(), "the server's"
        else:
            prompts = prompts_sha256(list(self._prompts.values()))
            template = hashlib.sha256(self._model.chat_template.encode()).hexdigest()
        return {
            "dataset": self.dataset.name,
            "dataset_sha256": self.dataset.sha256,
            "order_seed": ORDER_SEED,
            "prompts_sha256": prompts,
            "chat_template_sha256": template,
            "extractors": EXTRACTORS,
            "sampling": self.sampling.to_dict(),
            **self._form.conditions(self._examples),
        }

    def _by_messages(self, engine: Engine) -> bool:
        """Whether the engine applies a chat template of its own."""
        return self._form.chat and engine.supports("generate:messages")

    def ids(self, engine: Engine, count: int | None = None) -> list[str]:
        """The questions that this engine is asked, or the first ``count``, in their fixed order: a random sample of the dataset."""
        return list(self._problems)[: self.count(engine) if count is None else count]

    def count(self, engine: Engine) -> int:
        """How many questions this engine is asked."""
        default = len(self._problems) if engine.info.device not in ("cpu", "remote") else CPU_QUESTIONS
        return min(self._limit or default, len(self._problems))

    @property
    def limited(self) -> bool:
        """Whether somebody said how many questions are asked."""
        return self._limit is not None

    def asking(self, engine: Engine) -> Asking:
        """What this engine has answered so far, and may be asked further."""
        return self._asking.setdefault(engine, Asking(self, engine, whole=self._whole))

    def prompts(self, engine: Engine, ids: Sequence[str]) -> list[Any]:
        """The prompts of these questions: token ids, or conversations for a server that applies a chat template of its own."""
        if self._by_messages(engine):
            return [[{"role": "user", "content": self._texts[name]}] for name in ids]
        return [self._prompts[name] for name in ids]

    def watches_sampler(self, engine: Engine) -> bool:
        """Whether what the engine chooses can be held against its own distribution, step by step."""
        return self.sampling.temperature == 0 and engine.supports("generate:logprobs")

    def graded(self, engine: Engine, ids: Sequence[str], *, watched: bool = False) -> dict[str, Answer]:
        """The graded answers to these questions, asked now, by id; ``watched``: with log-probabilities, where the engine can."""
        asked: dict[str, Any] = {"logprobs": sampler.TOP} if watched and self.watches_sampler(engine) else {}
        prompts = self.prompts(engine, ids)
        step = self.concurrency or max(len(prompts), 1)
        parts = [engine.generate(prompts[start : start + step], self.sampling, **asked) for start in range(0, len(prompts), step)]
        generations = [generation for part in parts for generation in part]
        dtype = engine.info.dtype
        return {name: self._grade(self._problems[name], given, dtype) for name, given in zip(ids, generations, strict=True)}

    def record(self, engine: Engine, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a baseline holds of this engine: ``runs`` runs over the questions asked, no fewer than before unless limited.

        Each run asks in an order of its own: how prompts fall into batches is the noise that later runs will have too.
        """
        before = previous["questions"] if previous and not self.limited else 0
        ids = self.ids(engine, max(self.count(engine), before))
        runs = [self.asking(engine).ask(ids).answers]
        runs += [self.graded(engine, _shuffled(ids, number)) for number in range(1, self.runs)]
        return pack(ids, runs)

    def _grade(self, problem: Problem, generation: Generation, dtype: str) -> Answer:
        text, stopped = self._form.read(generation.text or "")
        graded = grade(problem, text)
        off_argmax, unlikely = sampler.off_argmax(generation, dtype=dtype) or (None, 0)
        return Answer(
            strict=graded.strict,
            flexible=graded.flexible,
            format_miss=graded.format_miss,
            truncated=generation.finish_reason == "length" and not stopped,
            tokens=len(generation.token_ids),
            off_argmax=off_argmax,
            unlikely=unlikely,
        )


def _shuffled(ids: Sequence[str], number: int) -> list[str]:
    return sorted(ids, key=lambda name: hashlib.sha256(f"{ORDER_SEED}:{number}:{name}".encode()).digest())
