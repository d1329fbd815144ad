"""Log-probabilities of given tokens: by one pass over a sequence, or token by token through the cache."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from pytest_llminfer.worker.backends.batching import plan_batches
from pytest_llminfer.worker.backends.transformers.loops import next_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

_CHUNK = 256
_ROWS = 8
"""Of a batch, at the most: the logits of 128 positions each over 150,000 tokens are then 0.3 GB in bf16."""


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


def batches(sequences: Sequence[Sequence[int]], *, max_batch_tokens: int) -> list[list[int]]:
    """Which sequences are scored together, by their numbers."""
    budget = min(max_batch_tokens, _ROWS * max(map(len, sequences)))
    return plan_batches([len(sequence) - 1 for sequence in sequences], max_tokens=0, max_batch_tokens=budget)


def score_top(
    model: Any,
    sequences: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    *,
    top: int,
    last: int,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, np.ndarray]]:
    """The fields of ``Scores``. The logits of a batch are kept for its last positions alone, and read row by row."""
    found: list[dict[str, np.ndarray]] = [{} for _ in sequences]
    done = 0
    for batch in batches:
        logits = _last_logits(model, [sequences[number][:-1] for number in batch], last)
        for row, number in enumerate(batch):
            found[number] = _top(logits[row], sequences[number][-last:], top)
        done += len(batch)
        progress("scoring", done, len(sequences))
    return found


def _last_logits(model: Any, inputs: Sequence[Sequence[int]], last: int) -> torch.Tensor:
    width = max(map(len, inputs))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in inputs], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in inputs], device=model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    padded = {"attention_mask": mask} if not bool(mask.all()) else {}
    logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=last, **padded).logits
    return logits


def _top(logits: torch.Tensor, targets: Sequence[int], top: int) -> dict[str, np.ndarray]:
    logprobs = logits.float().log_softmax(dim=-1)
    given = torch.tensor(list(targets), device=logprobs.device)
    values, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    return {
        "logprobs": logprobs.gather(-1, given[:, None])[:, 0].cpu().numpy(),
        "top_ids": ids.to(torch.int32).cpu().numpy(),
        "top_logprobs": values.cpu().numpy(),
    }


def _token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logprobs: torch.Tensor = logits.float().log_softmax(dim=-1).gather(-1, targets[:, None])[:, 0]
    return logprobs


def _to_array(pieces: list[torch.Tensor]) -> np.ndarray:
    array: np.ndarray = torch.cat(pieces).cpu().numpy()
    return array
