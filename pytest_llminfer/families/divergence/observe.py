"""Fixed texts of the session's dataset, what an engine predicts at each of their positions, and the records of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.baselines import side_files
from pytest_llminfer.datasets.fingerprint import prompts_sha256
from pytest_llminfer.datasets.prompts import ZERO_SHOT
from pytest_llminfer.engines.capabilities import need
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.divergence.check import LIMITS, SAME_WEIGHTS, Limits, compare, kind_of
from pytest_llminfer.hardware import instruction_sets
from pytest_llminfer.observations.generation import Scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.datasets.gsm8k import Problem
    from pytest_llminfer.datasets.load import Dataset
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.observations.engine import EngineInfo

FAMILY = "divergence"
PROMPTS, POSITIONS, TOP = 32, 128, 20
ORDER_SEED = 20260101
DRAWN_PROMPT = 64
SMALL = 1_000_000_000
"""Parameters. The limits of quantized weights were measured on larger models; smaller ones lose more by the same format."""


def teacher_forced_sequences(model: Model, dataset: Dataset) -> list[list[int]]:
    """32 token sequences, each a prompt and 128 positions after it, the same on every machine.

    Chats of several turns, each a question of the dataset with its solution: the positions are those after the first prompt.
    A model without a chat template reads the same as plain text; without a tokenizer, or with dummy weights, ids are drawn.
    """
    if model.weights == "dummy" or not model.has_tokenizer:
        return model.sample_prompts(PROMPTS, DRAWN_PROMPT + POSITIONS)
    problems = dataset.ordered(ORDER_SEED)
    sequences, following = [], 0
    for _ in range(PROMPTS):
        first = ZERO_SHOT.format(question=problems[following % len(problems)].question)
        length = POSITIONS + len(model.encode(model.render_chat(first) if model.chat_template else f"{first}\n"))
        turns: list[Problem] = []
        ids: list[int] = []
        while len(ids) < length:
            turns.append(problems[following % len(problems)])
            following += 1
            ids = model.encode(_text(model, turns))
        sequences.append(ids[:length])
    return sequences


def _text(model: Model, turns: Sequence[Problem]) -> str:
    pairs = [(ZERO_SHOT.format(question=problem.question), problem.answer) for problem in turns]
    if not model.chat_template:
        return "\n\n".join(f"{question}\n{answer}" for question, answer in pairs)
    roles = ("user", "assistant")
    return model.render_chat([{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)])


def need_predictions(engine: Engine) -> None:
    """Refuse an engine that does not tell what it predicts for given tokens.

    Raises:
        UnsupportedError: it does not.
    """
    need(engine, "score_top", f"{engine.spec.engine} does not tell what it predicts for given tokens ('score_top')")


@dataclass(frozen=True)
class TeacherForced:
    """The sequences, and what the engine predicts at their positions, all of them in one request.

    Attributes:
        engine: The engine under test.
        dataset: Where the texts come from.
        sequences: Token ids, each a prompt and the positions after it.
        scores: Predictions for the last ``POSITIONS`` tokens of each sequence, in the same order.
    """

    engine: Engine
    dataset: Dataset
    sequences: list[list[int]]
    scores: list[Scores]

    @classmethod
    def ask(cls, engine: Engine, dataset: Dataset) -> TeacherForced:
        """One prefill a sequence.

        Raises:
            UnsupportedError: the engine does not tell what it predicts for given tokens.
        """
        need_predictions(engine)
        sequences = teacher_forced_sequences(engine.model, dataset)
        return cls(engine, dataset, sequences, engine.score_top(sequences, top=TOP, last=POSITIONS))

    def noise(self) -> float:
        """The mean KL, in nats, between all sequences at once and one by one: what another execution mode changes."""
        single = [self.engine.score_top([sequence], top=TOP, last=POSITIONS)[0] for sequence in self.sequences]
        return float(compare(candidate=single, reference=self.scores, dtype=self.engine.info.dtype).kl.mean())

    @property
    def conditions(self) -> dict[str, Any]:
        """What must be equal for a record to be a fair comparison."""
        return {"sequences_sha256": prompts_sha256(self.sequences), "positions": POSITIONS, "top": TOP}


@dataclass(frozen=True)
class Recorded:
    """One record.

    Attributes:
        scores: Its distributions, by sequence.
        noise: Mean KL in nats between two execution modes of the recorded cell.
        device: On what it was made, as :func:`device_of` says it.
    """

    scores: list[Scores]
    noise: float
    device: str


class Divergence:
    """What one cell predicts, its own record, and the record of the reference: unquantized weights."""

    def __init__(self, teacher_forced: TeacherForced, baseline: Baseline, limits: Mapping[str, tuple[float, float]]) -> None:
        self._teacher_forced, self._baseline, self._limits = teacher_forced, baseline, limits
        self._engine, self.scores = teacher_forced.engine, teacher_forced.scores
        self.dtype = self._engine.info.dtype

    @property
    def kind(self) -> str:
        """The kind of the cell, a key of ``LIMITS``."""
        spec = self._engine.spec
        declared = self._engine.model.config.get("quantization_config")
        bits = declared.get("bits") if isinstance(declared, dict) and spec.quantization != "none" else None
        return kind_of(spec.quantization, spec.kv_dtype, bits=bits if isinstance(bits, int) else None)

    @property
    def quantized(self) -> bool:
        """Whether the cell is expected to differ from the reference."""
        return self.kind != SAME_WEIGHTS

    @property
    def limit(self) -> Limits | None:
        """The limits of this kind of cell; None where none hold for a model of this size."""
        if self.kind in self._limits:
            return Limits(*self._limits[self.kind], source="--divergence-limits")
        if self.quantized and _parameters(self._engine.model) < SMALL:
            return None
        return LIMITS[self.kind]

    @property
    def reference_name(self) -> str:
        """The reference, as a phrase for the verdict."""
        return f"{self._by()} with weights that are not quantized"

    def same_setting(self, record: Recorded) -> bool:
        """Whether the record was made on such a device, and this cell is not parallel or served."""
        spec, info = self._engine.spec, self._engine.info
        return record.device == device_of(info) and not (spec.parallel or spec.serve)

    def noise_of(self, record: Recorded) -> float:
        """The KL in nats that a benign run with the same weights may show against the record: more on another device."""
        return record.noise if self.same_setting(record) else max(record.noise, LIMITS[SAME_WEIGHTS].kl)

    def recorded(self) -> Recorded:
        """This cell's own record.

        Raises:
            MissingBaselineError: there is none. BaselineRecordedError: this run was recorded.
        """
        return self._expected()

    def reference(self) -> Recorded:
        """The record of transformers with unquantized weights, or of the same engine where transformers has none.

        Raises:
            MissingBaselineError: there is none. BaselineRecordedError: this run was recorded.
        """
        return self._expected(by=self._by(), unquantized=True)

    def _by(self) -> str:
        engine = self._engine.spec.engine
        from_another = self._engine.spec.weights == "real" and engine != "transformers"
        known = from_another and self._baseline.has(FAMILY, by="transformers", unquantized=True)
        return "transformers" if known else engine

    def _expected(self, **which: Any) -> Recorded:
        spec = self._engine.spec
        noise, device, reference = self._baseline.expected(
            FAMILY,
            observe=self._observe,
            conditions=self._teacher_forced.conditions,
            n=PROMPTS * POSITIONS,
            per_hardware=profile(spec.engine).draws_on_device(spec),
            per_parallelism=profile(spec.engine).draws_per_rank(spec),
            read=_facts,
            **which,
        )
        arrays = self._baseline.attached(FAMILY, reference)
        columns = zip(*(arrays[name] for name in ("logprobs", "top_ids", "top_logprobs")), strict=True)
        return Recorded([Scores(*column) for column in columns], noise, device)

    def _observe(self, engine: Engine, previous: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG002 - a record stands alone
        """What a record holds; the distributions themselves go beside it."""
        found = engine.once(TeacherForced.ask, self._teacher_forced.dataset)
        names = ("logprobs", "top_ids", "top_logprobs")
        return {
            "device": device_of(engine.info),
            "mean_logprob": float(np.mean([scores.logprobs.mean() for scores in found.scores])),
            "noise_kl": found.noise(),
            **self._baseline.attach(FAMILY, {name: np.stack([getattr(scores, name) for scores in found.scores]) for name in names}),
        }


def device_of(info: EngineInfo) -> str:
    """The device by its exact name, a processor with the instruction sets that choose its kernels: others round otherwise."""
    return " ".join((info.device_name, *instruction_sets())) if info.device == "cpu" else info.device_name


def _facts(expected: Mapping[str, Any]) -> tuple[float, str, dict[str, Any]]:
    """Of a record its noise in nats, its device, and what it says of its arrays."""
    file = expected[side_files.FIELD]
    return (
        float(expected["noise_kl"]),
        str(expected["device"]),
        {side_files.FIELD: {"name": file["name"], "sha256": file["sha256"]}},
    )


def _parameters(model: Model) -> float:
    try:
        return model.shape.parameter_count
    except UnsupportedError:
        return float("inf")
