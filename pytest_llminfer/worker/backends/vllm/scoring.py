"""Log-probabilities of given tokens: of a prompt, or teacher-forced one by one through the decode path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.worker.backends.vllm.generation import generate, sampling_params, top_logprobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Progress = Callable[[str, int, int], None]

_SLICE_TOKENS = 1 << 16
_FORCED = "llminfer_forced_tokens"


def score(llm: Any, params_class: Any, sequences: Sequence[Sequence[int]], *, decode: bool, progress: Progress) -> list[np.ndarray]:
    """Per sequence float32 (T-1,): the log-probability in nats of each token given those before it."""
    one = _by_decode if decode else _by_prefill
    scores: list[np.ndarray] = []
    for part in slices(sequences, most=_SLICE_TOKENS):
        scores += one(llm, params_class, part)
        progress("scoring", len(scores), len(sequences))
    return scores


def score_top(
    llm: Any, params_class: Any, sequences: Sequence[Sequence[int]], *, top: int, last: int, progress: Progress
) -> list[dict[str, np.ndarray]]:
    """The fields of ``Scores``. vLLM lists the given token before the most likely ones, whether it is one of them or not."""
    params = sampling_params(params_class, prompt_logprobs=top, **_fields(1))
    scores: list[dict[str, np.ndarray]] = []
    for part in slices(sequences, most=_SLICE_TOKENS):
        for output, sequence in zip(generate(llm, part, params, None), part, strict=True):
            steps = list(output.prompt_logprobs)
            ids, values = top_logprobs(steps[-last:], top)
            scores.append({"logprobs": _given(steps, sequence)[-last:], "top_ids": ids, "top_logprobs": values})
        progress("scoring", len(scores), len(sequences))
    return scores


def slices(sequences: Sequence[Sequence[int]], *, most: int) -> Iterator[list[Sequence[int]]]:
    """Runs of sequences of at most ``most`` tokens together, or one longer sequence: vLLM keeps the results of a whole call."""
    part: list[Sequence[int]] = []
    tokens = 0
    for sequence in sequences:
        if part and tokens + len(sequence) > most:
            yield part
            part, tokens = [], 0
        part.append(sequence)
        tokens += len(sequence)
    if part:
        yield part


def _fields(max_tokens: int) -> dict[str, Any]:
    return {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, "stop_token_ids": []}


def _by_prefill(llm: Any, params_class: Any, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    params = sampling_params(params_class, prompt_logprobs=0, **_fields(1))
    outputs = generate(llm, sequences, params, None)
    return [_given(output.prompt_logprobs, sequence) for output, sequence in zip(outputs, sequences, strict=True)]


def _by_decode(llm: Any, params_class: Any, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The first token is the prompt; every other one is teacher-forced, and its log-probability is that of the step before the
    forcing.
    """
    params = [
        sampling_params(params_class, logprobs=0, extra_args={_FORCED: list(sequence[1:])}, **_fields(len(sequence) - 1))
        for sequence in sequences
    ]
    outputs = generate(llm, [sequence[:1] for sequence in sequences], params, None)
    scores = []
    for output, sequence in zip(outputs, sequences, strict=True):
        (completion,) = output.outputs
        if list(completion.token_ids) != list(sequence[1:]):
            raise RuntimeError("vllm generated other tokens than those that were teacher-forced")
        scores.append(_given([None, *completion.logprobs], sequence))
    return scores


def _given(steps: Any, sequence: Sequence[int]) -> np.ndarray:
    values = [step[token].logprob for step, token in zip(list(steps)[1:], sequence[1:], strict=True)]
    return np.array(values, dtype=np.float32)
