"""Requests in vLLM's words, and its answers in ours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.worker.backends.requests import end_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    Progress = Callable[[str, int, int], None]

_REPORT_SECONDS = 0.5


def sampling_fields(sampling: Mapping[str, Any], model_end_tokens: Sequence[int], *, logprobs: int) -> dict[str, Any]:
    """Every field that chooses a token, spelled out. vLLM knows no end token, because it gets no tokenizer."""
    return {
        "n": 1,
        "max_tokens": sampling["max_tokens"],
        "min_tokens": 0,
        "temperature": float(sampling["temperature"]),
        "top_p": float(sampling["top_p"]),
        "top_k": max(sampling["top_k"], 0),
        "min_p": 0.0,
        "repetition_penalty": float(sampling["repetition_penalty"]),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": sampling["seed"],
        "stop_token_ids": end_tokens(sampling, model_end_tokens),
        "ignore_eos": True,
        "logprobs": logprobs or None,
    }


def sampling_params(params_class: Any, **fields: Any) -> Any:
    """The engine's ``SamplingParams``, with what this version has of detokenize and flat_logprobs: they only save time.

    Raises:
        BadInputError: a parameter that this version does not have, or refuses.
    """
    known = set(params_class.__struct_fields__ if hasattr(params_class, "__struct_fields__") else params_class.__annotations__)
    savings = {"detokenize": False, "flat_logprobs": True}
    missing = sorted(set(fields) - known)
    if missing:
        raise BadInputError(f"the installed vllm has no sampling parameter {', '.join(missing)}")
    try:
        return params_class(**fields, **{name: value for name, value in savings.items() if name in known})
    except Exception as error:  # the class of a refusal differs by version
        raise BadInputError(f"vllm refuses this sampling: {error}") from error


def check_logprobs(logprobs: int, most: int) -> None:
    """More than ``max_logprobs`` are refused by vLLM; -1 there means the whole vocabulary.

    Raises:
        BadInputError: ``logprobs`` exceeds ``most``.
    """
    if 0 <= most < logprobs:
        raise BadInputError(
            f"{logprobs} log-probabilities a step are more than vllm gives: max_logprobs={most}; raise that argument"
        )


def generate(llm: Any, prompts: Sequence[Sequence[int]], params: Any, progress: Progress | None) -> list[Any]:
    """The engine's own outputs of one call, in the order of the prompts. params: one for all, or one a prompt."""
    with Heartbeat(llm.llm_engine, len(prompts), progress):
        outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False)
    return list(outputs)


class Heartbeat:
    """Reports what vLLM's own loop has finished, at most twice a second: a step costs one look at the clock."""

    def __init__(self, engine: Any, total: int, progress: Progress | None) -> None:
        self._engine, self._total, self._progress = engine, total, progress
        self._done = 0
        self._last = time.monotonic()

    def __enter__(self) -> None:
        if self._progress is not None:
            self._step = self._engine.step
            self._engine.step = self._timed_step

    def __exit__(self, error: object, *_: object) -> None:
        if self._progress is not None:
            del self._engine.step
            if error is None:
                self._progress("generating", self._total, self._total)

    def _timed_step(self) -> Any:
        outputs = self._step()
        if outputs:
            self._done += sum(output.finished for output in outputs)
        if self._progress is not None and time.monotonic() - self._last > _REPORT_SECONDS:
            self._last = time.monotonic()
            self._progress("generating", self._done, self._total)
        return outputs


def answers(outputs: Sequence[Any], end_token_ids: Collection[int], *, logprobs: int) -> list[dict[str, Any]]:
    """Fields of ``Generation`` of each output."""
    return [_answer(output, end_token_ids, logprobs) for output in outputs]


def _answer(output: Any, end_token_ids: Collection[int], logprobs: int) -> dict[str, Any]:
    (completion,) = output.outputs
    token_ids = list(completion.token_ids)
    ended = bool(token_ids) and token_ids[-1] in end_token_ids
    answer: dict[str, Any] = {"token_ids": token_ids, "finish_reason": "stop" if ended else "length"}
    if logprobs:
        answer["top_ids"], answer["top_logprobs"] = top_logprobs(completion.logprobs, logprobs)
    cached = getattr(output, "num_cached_tokens", None)
    if cached is not None:
        answer["cached_tokens"] = int(cached)
    return answer


def top_logprobs(steps: Any, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``top`` likeliest tokens of each step: ids (T, top) int32 and log-probabilities (T, top) float32, likeliest first.

    vLLM puts the chosen token before them, whether it is one of them or not.
    """
    if hasattr(steps, "start_indices"):
        width = top + 1
        ids, values = (np.asarray(kept, dtype=kind) for kept, kind in ((steps.token_ids, np.int32), (steps.logprobs, np.float32)))
        if len(ids) == width * len(steps.start_indices):
            return ids.reshape(-1, width)[:, 1:].copy(), values.reshape(-1, width)[:, 1:].copy()
    rows = [sorted(step.items(), key=lambda entry: entry[1].rank)[:top] for step in steps]
    ids = np.array([[token for token, _ in row] for row in rows], dtype=np.int32).reshape(len(rows), -1)
    values = np.array([[entry.logprob for _, entry in row] for row in rows], dtype=np.float32).reshape(len(rows), -1)
    return ids, values
