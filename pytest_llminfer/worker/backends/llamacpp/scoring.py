"""Log-probabilities of given tokens: all positions of a sequence in one call, or token by token through the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.worker.backends.llamacpp.sampling import TopTokens, log_softmax

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


def score_top(
    decoder: Decoder, sequences: Sequence[Sequence[int]], *, top: int, last: int, progress: Callable[[str, int, int], None]
) -> list[dict[str, np.ndarray]]:
    """The fields of ``Scores``: what comes before the ``last`` inputs fills the cache, over which these are computed."""
    scores = []
    for number, sequence in enumerate(sequences):
        decoder.clear()
        start = len(sequence) - 1 - last
        for begin in range(0, start, decoder.size):
            decoder.add(sequence[begin : min(begin + decoder.size, start)], begin, 0, last=False)
            decoder.run()
        likely, given = TopTokens(top), np.empty(last, np.float32)
        for begin in range(start, start + last, decoder.size):
            decoder.add(sequence[begin : min(begin + decoder.size, start + last)], begin, 0, every=True)
            for row, logits in enumerate(decoder.run(), begin):
                likely.add(logits)
                given[row - start] = log_softmax(logits, np.array(sequence[row + 1]))
        fields = likely.fields()
        scores.append({"logprobs": given, "top_ids": fields["top_ids"], "top_logprobs": fields["top_logprobs"]})
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
