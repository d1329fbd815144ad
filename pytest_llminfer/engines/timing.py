"""What an engine is asked about its speed: seconds by the clock of its own process, and what its accelerator did meanwhile."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_llminfer.engines.replicas import at_once, deal
from pytest_llminfer.errors import EngineError
from pytest_llminfer.observations.engine import Calibration
from pytest_llminfer.observations.generation import Sampling
from pytest_llminfer.observations.speed import ReferenceStep, StepTrace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.engines.replica import Replica


class TimedQuestions:
    """Part of ``Engine``: decoding is greedy, to an exact number of new tokens."""

    spec: Any
    _replicas: list[Replica]

    def _ask(self, method: str, **params: Any) -> Any:
        raise NotImplementedError

    def calibrate(self) -> Calibration:
        """What the device can do right now."""
        return Calibration.from_message(self._ask("calibrate"))

    def reference_step(self) -> ReferenceStep:
        """A frozen decode step, timed now in the process of the first rank."""
        return ReferenceStep.from_message(self._ask("reference_step"))

    def time_generation(self, prompts: Sequence[Sequence[int]], *, new_tokens: int) -> float:
        """Seconds that the prompts took, all at once, by the clock of the worker: of the slowest replica, if there are several.

        Raises:
            EngineError: the engine did not keep the output length, so that seconds mean nothing.
        """
        asked = {"sampling": _greedy(new_tokens), "logprobs": 0, "cache_path": "engine"}
        shares = [share for share in deal(len(prompts), len(self._replicas)) if share]
        answers = at_once(
            [
                partial(replica.ask, "time_generation", {"prompts": [list(prompts[index]) for index in share], **asked})
                for replica, share in zip(self._replicas, shares, strict=False)
            ]
        )
        lengths = [len(output["token_ids"]) for answer in answers for output in answer["outputs"]]
        if lengths != [new_tokens] * len(prompts):
            raise EngineError(f"{self.spec} did not generate exactly {new_tokens} tokens a prompt, though told to")
        return max(float(answer["seconds"]) for answer in answers)

    def trace(self, batches: Sequence[Sequence[Sequence[int]]], *, new_tokens: int) -> StepTrace:
        """What the accelerator of the first rank does while it generates for its replica's share of each batch, in turn.

        Raises:
            UnsupportedError: the engine has no accelerator, or its activity cannot be read.
        """
        count = len(self._replicas)
        shares = [[list(prompts[index]) for index in deal(len(prompts), count)[0]] for prompts in batches]
        return StepTrace.from_message(self._ask("trace", batches=shares, sampling=_greedy(new_tokens)))


def _greedy(new_tokens: int) -> dict[str, Any]:
    return Sampling(max_tokens=new_tokens, ignore_eos=True).to_dict()
