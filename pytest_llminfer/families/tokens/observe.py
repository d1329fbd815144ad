"""An engine's own greedy answers, by two benign execution modes: what its other cache paths, ranks and records are compared
with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.numerics.near_ties import measured_noise, rms_noise
from pytest_llminfer.observations.generation import Generation, Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.engines.engine import Engine

PROMPTS, MAX_TOKENS, TOP = 8, 48, 5
_STORED = 3
"""How many of the likeliest tokens of a step a record keeps: a tie is between the first two, or close to them."""


@dataclass(frozen=True)
class Greedy:
    """Greedy answers to the same prompts by two benign execution modes.

    Attributes:
        prompts: Token ids of each prompt.
        batched: Answers to all prompts in one request, in their order.
        one_by_one: Answers to each prompt in a request of its own, in the same order.
        noise: Largest difference in nats between the log-probabilities of the two (``near_ties.measured_noise``).
        dtype: What the engine computes in, in the words of a cell.
    """

    prompts: list[list[int]]
    batched: list[Generation]
    one_by_one: list[Generation]
    noise: float
    dtype: str

    @classmethod
    def ask(cls, engine: Engine) -> Greedy:
        """Generate both ways.

        Raises:
            UnsupportedError: the engine does not give log-probabilities, without which a tie cannot be distinguished from an error.
        """
        prompts = engine.model.prompts(PROMPTS)
        batched = engine.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP)
        one_by_one = [engine.generate([prompt], max_tokens=MAX_TOKENS, logprobs=TOP)[0] for prompt in prompts]
        dtype = engine.info.dtype
        return cls(prompts, batched, one_by_one, measured_noise(batched, one_by_one, dtype=dtype), dtype)

    @property
    def rms(self) -> float:
        """The root mean square in nats of what the two ways differ by in one logit."""
        return rms_noise(self.batched, self.one_by_one, dtype=self.dtype)

    @property
    def conditions(self) -> dict[str, Any]:
        """What must be equal for a record to be a fair comparison."""
        text = json.dumps(self.prompts, separators=(",", ":"))
        return {"prompts_sha256": hashlib.sha256(text.encode()).hexdigest(), "sampling": Sampling(MAX_TOKENS).to_dict()}


def observe(engine: Engine, previous: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG001 - a record stands alone
    """What a record holds of an engine's greedy answers, given all at once."""
    return pack(engine.once(Greedy.ask).batched)


def pack(answers: Sequence[Generation]) -> dict[str, Any]:
    """Answers as a record holds them, one short line each: tokens, finish reasons, and of each step the likeliest three."""
    return {"answers": [_pack(answer) for answer in answers]}


def unpack(expected: Mapping[str, Any]) -> list[Generation]:
    """The answers of a record."""
    return [_unpack(answer) for answer in expected["answers"]]


def _pack(answer: Generation) -> dict[str, Any]:
    packed: dict[str, Any] = {"token_ids": " ".join(map(str, answer.token_ids)), "finish_reason": answer.finish_reason}
    if answer.top_ids is not None and answer.top_logprobs is not None:
        packed["top_ids"] = _lines(answer.top_ids[:, :_STORED], "d")
        packed["top_logprobs"] = _lines(answer.top_logprobs[:, :_STORED], ".4g")
    if answer.max_logit is not None:
        packed["max_logit"] = " ".join(f"{value:.4g}" for value in answer.max_logit)
    return packed


def _lines(table: np.ndarray, form: str) -> str:
    return ", ".join(" ".join(format(value, form) for value in row) for row in table.tolist())


def _unpack(packed: Mapping[str, Any]) -> Generation:
    fields = asdict(Generation(tuple(map(int, packed["token_ids"].split())), packed["finish_reason"]))
    for name, dtype in (("top_ids", np.int32), ("top_logprobs", np.float32)):
        if name in packed:
            fields[name] = np.array([row.split() for row in packed[name].split(", ")], dtype=np.float64).astype(dtype)
    if "max_logit" in packed:
        fields["max_logit"] = np.array(packed["max_logit"].split(), dtype=np.float32)
    return Generation(**fields)
