"""What a cell's weights predict without the rounding of its dtype: asked of the engine itself, or of transformers beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import EngineError, EngineStartError, UnsupportedError
from pytest_llminfer.families.execution_modes.divergences import decoded, first, same_context
from pytest_llminfer.families.execution_modes.rounding import Errors
from pytest_llminfer.numerics.squared_error import squared_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.observations.generation import Generation, Scores

_TRANSFORMERS = "transformers"
_TO_RUN = "use transformers, vLLM or SGLang with unquantized weights of a checkpoint"


class Unrounded:
    """The weights of one cell, in a wider dtype than it serves.

    transformers computes them in its own worker, one decoder block at a time. For an engine that cannot, and runs where
    transformers is installed, a second worker in its environment loads the same checkpoint and computes it on the processor: the
    accelerator is the engine's. launch: starts that worker, and is called once at the most; None where no engine may be started.
    """

    def __init__(self, engine: Engine, launch: Callable[..., Engine] | None = None) -> None:
        self._engine, self._launch = engine, launch
        self._beside: Engine | None = None
        self.missing = self._why_not()
        """Why nothing can be asked; empty where it can."""

    def _why_not(self) -> str:
        engine, spec = self._engine, self._engine.spec
        if engine.supports("score_listed"):
            return "" if engine.info.kv_dtype == engine.info.dtype else f"the cache of {spec} is quantized"
        if not engine.has_plain_weights:
            return f"{spec} has no unquantized weights and cache of a checkpoint"
        of = profile(spec.engine)
        if not of.has_transformers or spec.over_http or spec.engine == _TRANSFORMERS:
            return f"{spec} has no transformers that would compute its checkpoint in fp32"
        if changed := of.model_arguments & engine.engine_args.keys():
            return f"{', '.join(sorted(changed))} makes another model of the checkpoint"
        return "" if self._launch is not None else f"no second engine is started beside {spec}"

    def errors(
        self, sequences: Sequence[Sequence[int]], lengths: Sequence[int], *modes: Sequence[Scores]
    ) -> list[list[np.ndarray]]:
        """Per mode and prompt the squared errors in nats², (t,), of what it lists at each position.

        sequences: token ids. lengths: T, how many of the last tokens of each were predicted. modes: per prompt their scores of the
        first t <= T of these.

        Raises:
            UnsupportedError: nothing can be asked, and why.
        """
        if self.missing:
            raise UnsupportedError(self.missing, _TO_RUN)
        listed = []
        for number, length in enumerate(lengths):
            columns = [mode[number].top_ids for mode in modes]
            table = np.zeros((length, sum(ids.shape[1] for ids in columns)), np.int32)
            start = 0
            for ids in columns:
                table[: len(ids), start : start + ids.shape[1]] = ids
                start += ids.shape[1]
            listed.append(table)
        exact = self._ask(sequences, listed)
        found: list[list[np.ndarray]] = []
        starts = np.zeros(len(lengths), int)
        for mode in modes:
            of_mode = []
            for number, scores in enumerate(mode):
                count, width = scores.top_ids.shape
                of_mode.append(squared_errors(scores, exact[number][:count, starts[number] : starts[number] + width]))
                starts[number] += width
            found.append(of_mode)
        return found

    def compared(
        self, sequences: Sequence[Sequence[int]], lengths: Sequence[int], candidate: Sequence[Scores], reference: Sequence[Scores]
    ) -> Errors | None:
        """The errors of two modes; None where nothing can be asked, and :attr:`missing` then says why."""
        try:
            ours, theirs = self.errors(sequences, lengths, candidate, reference)
        except UnsupportedError:
            return None
        return Errors(ours, theirs, self.source)

    def of_answers(
        self, prompts: Sequence[Sequence[int]], candidate: Sequence[Generation], reference: Sequence[Generation]
    ) -> Errors | None:
        """The same of two answers to each prompt, up to and with the first token that differs."""
        lengths = [same_context(ours, theirs) for ours, theirs in zip(candidate, reference, strict=True)]
        pairs = zip(prompts, reference, lengths, strict=True)
        sequences = [[*prompt, *answer.token_ids[:length]] for prompt, answer, length in pairs]

        def scores(answers: Sequence[Generation]) -> list[Scores]:
            return [first(decoded(answer), length) for answer, length in zip(answers, lengths, strict=True)]

        return self.compared(sequences, lengths, scores(candidate), scores(reference))

    @property
    def source(self) -> str:
        """How the predictions are made, in words."""
        dtype = "fp64" if self._engine.info.dtype == "fp32" else "fp32"
        return f"beside the same weights in {dtype}" + ("" if self._engine.supports("score_listed") else " by transformers")

    def _ask(self, sequences: Sequence[Sequence[int]], listed: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            return self._asked().score_listed(sequences, listed)
        except (EngineError, EngineStartError) as error:
            # What cannot be computed beside the engine (too little memory, no such architecture) is no fault of it.
            self.missing = f"the weights of {self._engine.spec} could not be computed without rounding: {error}"
            raise UnsupportedError(self.missing, _TO_RUN) from error

    def _asked(self) -> Engine:
        if self._engine.supports("score_listed"):
            return self._engine
        if self._beside is None:
            if self._launch is None:
                raise UnsupportedError(f"no second engine is started beside {self._engine.spec}", _TO_RUN)
            spec = replace(
                self._engine.spec.single, engine=_TRANSFORMERS, dtype=self._engine.info.dtype, kv_dtype="auto", serve=False
            )
            self._beside = self._launch(spec, self._engine.model, beside=True)
        return self._beside

    def close(self) -> None:
        """End the worker beside the engine, if there is one."""
        if self._beside is not None:
            self._beside.close()
            self._beside = None
