"""Log-probabilities of a prompt, as vLLM's server returns them with ``prompt_logprobs``: what it predicts for given tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.errors import EngineError
from pytest_llminfer.worker.backends.openai.discovery import PROBE_SAMPLING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.worker.backends.base import Message
    from pytest_llminfer.worker.backends.openai.discovery import Asking


def body(asking: Asking, prompt: Sequence[int], top: int) -> dict[str, Any]:
    """One request: the prompt is what is asked about, and a single token is generated."""
    return {**asking.body(prompt, PROBE_SAMPLING, 0, {}), "prompt_logprobs": top}


def scores(reply: Message, sequence: Sequence[int], *, top: int, last: int) -> dict[str, np.ndarray]:
    """The fields of ``Scores``. The given token comes on top of the most likely ones where it is none of them.

    Raises:
        EngineError: the server did not return them for every position, or for other tokens.
    """
    steps = _steps(reply)
    if len(steps) != len(sequence) - 1 or any(str(token) not in step for token, step in zip(sequence[1:], steps, strict=True)):
        raise EngineError(f"a server was asked about a prompt of {len(sequence)} tokens and told {len(steps)} positions, or others")
    rows = [sorted(step.items(), key=lambda entry: entry[1]["rank"])[:top] for step in steps[-last:]]
    given = [step[str(token)]["logprob"] for token, step in zip(sequence[-last:], steps[-last:], strict=True)]
    return {
        "logprobs": np.array(given, np.float32),
        "top_ids": np.array([[int(token) for token, _ in row] for row in rows], np.int32),
        "top_logprobs": np.array([[entry["logprob"] for _, entry in row] for row in rows], np.float32),
    }


def _steps(reply: Message) -> list[dict[str, dict[str, float]]]:
    """Of every token but the first what was predicted, token id to ``{"logprob", "rank"}``; empty where they are not so."""
    choices = reply.get("choices") or [{}]
    steps = choices[0].get("prompt_logprobs")
    sound = isinstance(steps, list) and all(
        isinstance(step, dict)
        and all(
            isinstance(entry, dict) and {"logprob", "rank"} <= entry.keys() and token.isdigit() for token, entry in step.items()
        )
        for step in steps[1:]
    )
    return steps[1:] if sound and isinstance(steps, list) else []
