"""Requests in SGLang's words, and its answers in ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.errors import EngineError
from pytest_llminfer.worker.backends.requests import finish

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


def sampling_params(sampling: Mapping[str, Any], end_token_ids: Sequence[int]) -> dict[str, Any]:
    """Every choice spelled out. SGLang ignores stop tokens too under ``ignore_eos``: :func:`answer` cuts there instead.

    sampling_seed counts only with the engine argument ``enable_deterministic_inference``; without it the scheduler's own seed does.
    """
    return {
        "max_new_tokens": sampling["max_tokens"],
        "min_new_tokens": 0,
        "temperature": float(sampling["temperature"]),
        "top_p": float(sampling["top_p"]),
        "top_k": sampling["top_k"],
        "min_p": 0.0,
        "repetition_penalty": float(sampling["repetition_penalty"]),
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "stop_token_ids": list(end_token_ids),
        "ignore_eos": bool(sampling["ignore_eos"]),
        "skip_special_tokens": False,
        "sampling_seed": sampling["seed"],
        "n": 1,
    }


def answer(output: Mapping[str, Any], end_token_ids: Collection[int], *, top: int) -> dict[str, Any]:
    """The fields of ``Generation``.

    Raises:
        EngineError: SGLang gave the request up.
    """
    information = output["meta_info"]
    reason = information["finish_reason"]
    kind = reason.get("type") if isinstance(reason, dict) else reason
    if kind not in ("stop", "length"):
        message = reason.get("message", "") if isinstance(reason, dict) else ""
        raise EngineError(f"sglang gave a request up ({kind}): {message or 'it does not say why'}")
    token_ids, finish_reason = finish([int(token) for token in output["output_ids"]], end_token_ids)
    fields: dict[str, Any] = {
        "token_ids": token_ids,
        "finish_reason": finish_reason,
        "cached_tokens": information.get("cached_tokens"),
    }
    if top:
        steps = information["output_top_logprobs"][: len(token_ids)]
        if len(steps) != len(token_ids):
            raise EngineError(f"sglang gave {len(token_ids)} tokens, and log-probabilities of {len(steps)} steps")
        # An entry is (log-probability, token id, text or None).
        fields["top_ids"] = np.array([[entry[1] for entry in step] for step in steps], np.int32)
        fields["top_logprobs"] = np.array([[entry[0] for entry in step] for step in steps], np.float32)
    return fields


def prompt_logprobs(output: Mapping[str, Any], sequence: Sequence[int], *, vocab_size: int = 0) -> np.ndarray:
    """float32 (T-1,): of each token given those before it. The last id of the vocabulary, SGLang names 0 in its answer.

    Raises:
        EngineError: not one a token, or of other tokens.
    """
    entries = output["meta_info"]["input_token_logprobs"]
    if [entry[1] for entry in entries] not in (list(sequence), [0 if token == vocab_size - 1 else token for token in sequence]):
        raise EngineError(f"sglang was asked to score {len(sequence)} tokens and scored {len(entries)}, or others")
    return np.array([entry[0] for entry in entries[1:]], np.float32)


def prompt_top(output: Mapping[str, Any], sequence: Sequence[int], last: int, *, vocab_size: int = 0) -> dict[str, np.ndarray]:
    """The fields of ``Scores`` for the ``last`` tokens.

    Raises:
        EngineError: not one a token, of other tokens, or without the most likely ones.
    """
    steps = output["meta_info"]["input_top_logprobs"][-last:]
    if len(steps) != last or any(not step for step in steps):
        raise EngineError(f"sglang was asked for the most likely tokens of {last} positions and gave them for fewer")
    # An entry is (log-probability, token id, text or None).
    return {
        "logprobs": prompt_logprobs(output, sequence, vocab_size=vocab_size)[-last:],
        "top_ids": np.array([[entry[1] for entry in step] for step in steps], np.int32),
        "top_logprobs": np.array([[entry[0] for entry in step] for step in steps], np.float32),
    }
