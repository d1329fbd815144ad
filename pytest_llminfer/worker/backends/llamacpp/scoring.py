"""Log-probabilities of given tokens: all positions of a sequence in one call, or token by token through the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.worker.backends.llamacpp.sampling import log_softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llminfer.worker.backends.llamacpp.decoder import Decoder


def score(
    decoder: Decoder, sequences: Sequence[Sequence[int]], *, decode: bool, progress: Callable[[str, int, int], None]
) -> list[np.ndarray]:
    """Per sequence float32 (T-1,): the log-probability in nats of each token given those before it.

    A sequence longer than the engine's batch is computed in pieces that go through the cache.
    """
    scores = []
    for number, sequence in enumerate(sequences):
        decoder.clear()
        scores.append(_score_one(decoder, list(sequence), piece=1 if decode else decoder.size))
        progress("scoring", number + 1, len(sequences))
    decoder.clear()
    return scores


def _score_one(decoder: Decoder, sequence: list[int], *, piece: int) -> np.ndarray:
    given, targets = sequence[:-1], np.array(sequence[1:])
    found = np.empty(len(given), np.float32)
    for start in range(0, len(given), piece):
        tokens = given[start : start + piece]
        decoder.add(tokens, start, 0, every=True)
        for row, logits in enumerate(decoder.run()):
            found[start + row] = log_softmax(logits, targets[start + row])
    return found
