"""Put a dataset's questions to an engine and grade what comes back: in pieces, in any order, each question once."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_llminfer.datasets.few_shot import load_examples
from pytest_llminfer.datasets.fingerprint import prompts_sha256
from pytest_llminfer.datasets.gsm8k import EXTRACTORS, Problem
from pytest_llminfer.datasets.load import SYNTHETIC, Dataset
from pytest_llminfer.datasets.prompts import FORMS, PromptForm
from pytest_llminfer.errors import InvalidSpecError, TransportError, UnsupportedError
from pytest_llminfer.families.accuracy import reading, sampler
from pytest_llminfer.families.accuracy.grading import Answer, Reply
from pytest_llminfer.families.accuracy.record import ORDER_SEED, pack
from pytest_llminfer.observations.generation import Generation, Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.models.model import Model

MOST_QUESTIONS = 1000
"""Asked at most where no accelerator answers them, unless told otherwise: a clean run stops after a fourth of them."""
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
        self._replies: dict[str, Reply] = {}
        self._shown: set[str] = set()
        self._seconds = 0.0
        self._failure = ""

    def ask(self, ids: Sequence[str], following: Sequence[str] = (), *, extractors: Mapping[str, str] = EXTRACTORS) -> Answered:
        """The answers to the questions with these ids, in their order; the seconds are those of all that was asked so far.

        ``following``: asked along where fewer are left than are to be in flight at once. ``extractors``: that read the answers.

        Raises:
            TransportError: requests failed after all retries; the tests that follow are told so, and pay for no more.
        """
        wanted = self._questions.ids(self._engine) if self._whole else ids
        missing = [name for name in dict.fromkeys([*wanted, *ids]) if name not in self._replies]
        if missing and self._failure:
            raise TransportError(self._failure)
        if missing:
            if at_once := self._questions.at_once(self._engine):
                more = [name for name in following if name not in self._replies and name not in missing]
                missing += more[: -len(missing) % at_once]
            try:
                if not self._replies:
                    self._warm_up()
                started = time.perf_counter()
                fresh = self._questions.replies(self._engine, missing, watched=len(self._replies) < WATCHED)
            except TransportError as error:
                self._failure = f"{error} (asked once in this session)"
                raise
            self._seconds += time.perf_counter() - started
            self._replies |= fresh
        return Answered({name: self._questions.grade(name, self._replies[name], extractors) for name in ids}, self._seconds)

    def some(self) -> Answered:
        """What was answered so far; all questions where nothing was, or where times are compared."""
        if self._whole or not self._replies:
            return self.ask(self._questions.ids(self._engine))
        return self.ask(list(self._replies))

    def unshown(self, extractors: Mapping[str, str]) -> list[dict[str, Any]]:
        """What was answered since this was last asked, in words, for whoever reads the answers: a row a question, as plain data."""
        fresh = {name: reply for name, reply in self._replies.items() if name not in self._shown}
        self._shown |= fresh.keys()
        return [self._questions.show(name, reply, extractors) for name, reply in fresh.items()]

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

    ``limit``: how many are asked; None means all on an accelerator and 1,000 on a CPU. ``runs``: how often each is asked for a
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
        self.sampling = Sampling(max_tokens=MAX_TOKENS.get(dataset.name, DEFAULT_MAX_TOKENS), stop=self._form.stop)
        self.order_seed = secrets.randbits(32)
        """Of the order in which this session's runs ask, unless another is given."""

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

    def conditions(self, engine: Engine, extractors: Mapping[str, str] = EXTRACTORS) -> dict[str, Any]:
        """What must be equal for two runs to be compared; the number of questions need not be.

        extractors: by which this run's answers are read.
        """
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
            "extractors": dict(extractors),
            "sampling": replace(self.sampling, stop=()).to_dict(),
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
        default = len(self._problems) if engine.info.device not in ("cpu", "remote") else MOST_QUESTIONS
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

    def at_once(self, engine: Engine) -> int | None:
        """How many questions an engine is asked at least, where so many are left; None for as many as are wanted.

        On an accelerator a chunk of an eighth: a few dozen would leave it idle, and cost as much time.
        """
        if self.concurrency is None and engine.info.device not in ("cpu", "remote"):
            return -(-self.count(engine) // 8)
        return self.concurrency

    def graded(
        self, engine: Engine, ids: Sequence[str], *, watched: bool = False, extractors: Mapping[str, str] = EXTRACTORS
    ) -> dict[str, Answer]:
        """The graded answers to these questions, asked now, by id; ``watched``: with log-probabilities, where the engine can."""
        found = self.replies(engine, ids, watched=watched)
        return {name: self.grade(name, reply, extractors) for name, reply in found.items()}

    def replies(self, engine: Engine, ids: Sequence[str], *, watched: bool = False) -> dict[str, Reply]:
        """What the engine says to these questions, asked now, by id; as :meth:`graded`."""
        asked: dict[str, Any] = {"logprobs": sampler.TOP} if watched and self.watches_sampler(engine) else {}
        prompts = self.prompts(engine, ids)
        step = self.concurrency or max(len(prompts), 1)
        parts = [engine.generate(prompts[start : start + step], self.sampling, **asked) for start in range(0, len(prompts), step)]
        generations = [generation for part in parts for generation in part]
        dtype = engine.info.dtype
        return {name: self._reply(given, dtype) for name, given in zip(ids, generations, strict=True)}

    def grade(self, name: str, reply: Reply, extractors: Mapping[str, str] = EXTRACTORS) -> Answer:
        """What a reply to the question of this id is worth."""
        return reading.grade(self._problems[name], reply, extractors)

    def show(self, name: str, reply: Reply, extractors: Mapping[str, str]) -> dict[str, Any]:
        """The question of this id and a reply to it, for whoever reads the answers."""
        return reading.show(self._problems[name], reply, extractors)

    def record(self, engine: Engine, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a baseline holds of this engine: ``runs`` runs over the questions asked, no fewer than before unless limited.

        Each run asks in an order of its own: how prompts fall into batches is the noise that later runs will have too.
        """
        before = previous["questions"] if previous and not self.limited else 0
        ids = self.ids(engine, max(self.count(engine), before))
        runs = [self.asking(engine).ask(ids).answers]
        runs += [self.graded(engine, _shuffled(ids, number)) for number in range(1, self.runs)]
        return pack(ids, runs)

    def _reply(self, generation: Generation, dtype: str) -> Reply:
        text, stopped = self._form.read(generation.text or "")
        off_argmax, unlikely = sampler.off_argmax(generation, dtype=dtype) or (None, 0)
        # An engine that knows no stop strings goes past them: what it says after one is no part of the answer.
        tokens = len(self._model.encode(text)) if stopped else len(generation.token_ids)
        truncated = generation.finish_reason == "length" and not stopped
        return Reply(text, truncated, tokens, off_argmax, unlikely)


def _shuffled(ids: Sequence[str], number: int) -> list[str]:
    return sorted(ids, key=lambda name: hashlib.sha256(f"{ORDER_SEED}:{number}:{name}".encode()).digest())
