"""Log-probabilities of given tokens: by one pass over a sequence, or token by token through the cache."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from pytest_llminfer.worker.backends.transformers.loops import next_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

_CHUNK = 256


def score(
    model: Any, sequences: Sequence[Sequence[int]], *, decode: bool, progress: Callable[[str, int, int], None]
) -> list[np.ndarray]:
    """Per sequence float32 (T-1,): the log-probability in nats of each token given those before it."""
    one = _by_decode if decode else _by_prefill
    scores = []
    for number, sequence in enumerate(sequences):
        scores.append(one(model, sequence))
        progress("scoring", number + 1, len(sequences))
    return scores


def _by_prefill(model: Any, sequence: Sequence[int]) -> np.ndarray:
    ids = torch.tensor([list(sequence)], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    targets = ids[0, 1:]
    # In chunks: a float32 copy of (positions, vocabulary) would be twice the size of the model's own output.
    chunks = [
        _token_logprobs(logits[start : start + _CHUNK], targets[start : start + _CHUNK]) for start in range(0, len(targets), _CHUNK)
    ]
    return _to_array(chunks)


def _by_decode(model: Any, sequence: Sequence[int]) -> np.ndarray:
    cache = DynamicCache(config=model.config)
    steps = []
    for token, target in itertools.pairwise(sequence):
        logits = next_logits(model, [token], cache)
        steps.append(_token_logprobs(logits, torch.tensor([target], device=logits.device)))
    return _to_array(steps)


def _token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logprobs: torch.Tensor = logits.float().log_softmax(dim=-1).gather(-1, targets[:, None])[:, 0]
    return logprobs


def _to_array(pieces: list[torch.Tensor]) -> np.ndarray:
    array: np.ndarray = torch.cat(pieces).cpu().numpy()
    return array
