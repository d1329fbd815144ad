"""The same tokens by several execution modes of one engine: what the checks of decode, prefill and batches compare."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.execution_modes.check import Comparison
from pytest_llminfer.families.execution_modes.divergences import (
    decoded,
    first,
    given,
    k3,
    k3_of_answers,
    kl_of_answers,
    kl_of_scores,
    same_context,
)
from pytest_llminfer.families.execution_modes.rounding import Errors
from pytest_llminfer.families.execution_modes.texts import TEXT_TOKENS, continued, open_texts, refuse_flat, score_answers
from pytest_llminfer.families.execution_modes.unrounded import Unrounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.observations.generation import Generation, Scores

TEACHER_FORCED_TEXTS = 12
"""A decode cache path takes a step a token, those of the text included."""


@dataclass(frozen=True)
class ExecutionModes:
    """Continuations of open texts, decoded all at once and one by one.

    Attributes:
        engine: The engine under test.
        texts: Token ids of each text.
        batched: Continuations of all texts in one request, in their order.
        alone: Continuations of each text in a request of its own, in the same order.
        unrounded: What the cell's weights predict without rounding.
    """

    engine: Engine
    texts: list[list[int]]
    batched: list[Generation]
    alone: list[Generation]
    unrounded: Unrounded

    @classmethod
    def ask(cls, engine: Engine, unrounded: Unrounded | None = None) -> ExecutionModes:
        """Decode both ways, exactly as many tokens each.

        Raises:
            UnsupportedError: the predictions are flat.
        """
        texts = open_texts(engine.model)
        batched = continued(engine, texts)
        refuse_flat(engine, batched)
        alone = [continued(engine, [text])[0] for text in texts]
        return cls(engine, texts, batched, alone, unrounded or Unrounded(engine))

    @property
    def dtype(self) -> str:
        """Of the logits."""
        return self.engine.info.dtype

    @cached_property
    def _prefilled(self) -> list[Scores]:
        return score_answers(self.engine, self.texts, self.batched)

    @cached_property
    def _errors(self) -> dict[str, list[np.ndarray]]:
        """By mode, from the unrounded weights, where those can be had: asked once, for all modes over the batch's answers."""
        sides = {"batched": [decoded(answer) for answer in self.batched], "alone": self._same_as_batched(self.alone)}
        if self.engine.supports("score_top"):
            sides["prefilled"] = self._prefilled
        return dict(zip(sides, self.unrounded.errors(self._sequences, self._lengths, *sides.values()), strict=True))

    @property
    def _sequences(self) -> list[list[int]]:
        return [[*text, *answer.token_ids] for text, answer in zip(self.texts, self.batched, strict=True)]

    @property
    def _lengths(self) -> list[int]:
        return [len(answer.token_ids) for answer in self.batched]

    def _same_as_batched(self, answers: Sequence[Generation]) -> list[Scores]:
        """What other answers predict, up to and with the first token that differs from the batch's."""
        return [first(decoded(ours), same_context(ours, theirs)) for ours, theirs in zip(answers, self.batched, strict=True)]

    def _known(self, candidate: str, reference: str) -> Errors | None:
        if self.unrounded.missing:
            return None
        try:
            sides = self._errors
        except UnsupportedError:
            return None
        pairs = zip(sides[candidate], sides[reference], strict=True)
        cut = [(ours[: len(theirs)], theirs[: len(ours)]) for ours, theirs in pairs]
        return Errors([ours for ours, _ in cut], [theirs for _, theirs in cut], self.unrounded.source)

    def decode_from_prefill(self) -> Comparison:
        """Every answer, decoded in a batch, beside the same tokens by prefill."""
        found = kl_of_scores([decoded(answer) for answer in self.batched], self._prefilled)
        return self.compared(found, self._known("batched", "prefilled"))

    def alone_from_batch(self) -> Comparison:
        """Every text decoded alone, beside the batch; the noise is that of prefill, which the batch of decode has no part in."""
        errors = self._known("alone", "batched")
        noise = self.noise_of_prefill() if errors is None and self.engine.supports("score_top") else self.noise_of_decode()
        return Comparison(self.noise_of_decode(), noise, self.dtype, errors, self.unrounded.missing)

    def from_batch(self, answers: Sequence[Generation]) -> Comparison:
        """Answers to the same texts by an engine that was started otherwise, beside the batch."""
        scores = self._same_as_batched(answers)
        batched = [first(decoded(answer), len(ours.logprobs)) for ours, answer in zip(scores, self.batched, strict=True)]
        errors = self.unrounded.compared(self._sequences, self._lengths, scores, batched)
        return self.compared(kl_of_answers(answers, self.batched), errors)

    def teacher_forced_from_prefill(self) -> Comparison:
        """Some answers, text and answer fed one by one, beside the same by prefill: the given tokens alone are known.

        Raises:
            UnsupportedError: the engine cannot be made to decode given tokens.
        """
        sequences = self._sequences[:TEACHER_FORCED_TEXTS]
        sides = self.engine.score(sequences, cache_path="decode"), self.engine.score(sequences)
        scores = [[given(logprobs, sequence[1:]) for logprobs, sequence in zip(side, sequences, strict=True)] for side in sides]
        errors = self.unrounded.compared(sequences, [len(sequence) - 1 for sequence in sequences], *scores)
        found = k3(*([logprobs[-TEXT_TOKENS:] for logprobs in side] for side in sides))
        noise = [] if errors is not None else self._larger(k3_of_answers(self.alone, self.batched), self._k3_of_prefill())
        return Comparison(found, noise, self.dtype, errors, self.unrounded.missing, unit="k3")

    def compared(self, divergence: list[np.ndarray], errors: Errors | None) -> Comparison:
        """Two modes of this cell, over these or other prompts; without errors beside the noise of these."""
        noise = [] if errors is not None else self.noise()
        return Comparison(divergence, noise, self.dtype, errors, self.unrounded.missing)

    def noise(self) -> list[np.ndarray]:
        """The KL between two benign modes: alone and in a batch, by decode or by prefill, whichever is larger."""
        if not self.engine.supports("score_top"):
            return self.noise_of_decode()
        return self._larger(self.noise_of_decode(), self.noise_of_prefill())

    @staticmethod
    def _larger(ours: list[np.ndarray], theirs: list[np.ndarray]) -> list[np.ndarray]:
        means = [float(np.mean([values.mean() for values in side if len(values)] or [0.0])) for side in (ours, theirs)]
        return ours if means[0] >= means[1] else theirs

    def noise_of_decode(self) -> list[np.ndarray]:
        """The KL between decoding alone and in a batch."""
        return kl_of_answers(self.alone, self.batched)

    @cached_property
    def _prefilled_alone(self) -> list[Scores]:
        return [score_answers(self.engine, [text], [answer])[0] for text, answer in zip(self.texts, self.batched, strict=True)]

    def noise_of_prefill(self) -> list[np.ndarray]:
        """The KL between prefill alone and in a batch."""
        return kl_of_scores(self._prefilled_alone, self._prefilled)

    def _k3_of_prefill(self) -> list[np.ndarray]:
        if not self.engine.supports("score_top"):
            return []
        return k3([alone.logprobs for alone in self._prefilled_alone], [batch.logprobs for batch in self._prefilled])

    def noise_floors(self) -> dict[str, float]:
        """The mean of each noise in nats, as it is kept of a cell."""
        sides = {"decode_alone_from_batch": self.noise_of_decode(), "prefill_alone_from_batch": self.noise_of_prefill()}
        return {name: float(np.mean([values.mean() for values in found])) for name, found in sides.items()}
