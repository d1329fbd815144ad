"""Batch invariance: how many prompts get bitwise the same answer alone and among others, and whether all do where that is promised.

Most kernels choose how they sum by the size of the batch, so that a share below 1 is no fault; it is told, because a promise that
leaks is told by nothing else (vLLM issue #48271, docs/methods.md#batch-invariance).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.observations.generation import Generation


def check_batch_invariance(*, alone: Sequence[Generation], batched: Sequence[Generation], promised: str = "") -> Verdict:
    """The share of prompts whose tokens and log-probabilities are bitwise equal in both.

    alone, batched: answers to the same prompts, in order, with log-probabilities. promised: what promises equality, as in
    ``VLLM_BATCH_INVARIANT=1``; one prompt that differs then fails. Without a promise only an empty comparison does.
    """
    pairs = list(zip(alone, batched, strict=False))
    tokens = [ours.token_ids == theirs.token_ids for ours, theirs in pairs]
    both = [same and _same_logprobs(ours, theirs) for same, (ours, theirs) in zip(tokens, pairs, strict=True)]
    lines = [
        f"prompt {number}: {_difference(*pair)}" for number, (pair, equal) in enumerate(zip(pairs, both, strict=True)) if not equal
    ]
    problems = []
    if len(alone) != len(batched):
        problems.append(f"{len(alone)} answers alone, {len(batched)} in a batch: some were lost or added")
    if sum(answer.top_logprobs is not None and len(answer.token_ids) > 0 for answer in batched) < max(1, len(batched)):
        problems.append("nothing was compared: answers without tokens or log-probabilities")
    rate, alike = sum(both) / max(1, len(pairs)), sum(tokens) / max(1, len(pairs))
    return Verdict(
        outcome=Outcome.FAIL if problems or (promised and lines) else Outcome.PASS,
        claim=f"answers are bitwise the same alone and in a batch, as {promised} promises"
        if promised
        else "the share of answers that are bitwise the same alone and in a batch is measured",
        key=f"{rate:.0%} bitwise",
        measurements=(
            Measurement(
                "bitwise equal tokens and log-probabilities", rate, "", len(pairs), f"batch of {len(batched)}", shown=f"{rate:.1%}"
            ),
            Measurement("equal tokens", alike, "", len(pairs), shown=f"{alike:.1%}"),
        ),
        threshold="every prompt bitwise equal" if promised else "none: nothing promises equality",
        threshold_source=promised or "the engine",
        smallest_detectable="exact",
        advice="look at which kernels choose their split by the batch (normalisation, attention, sampler), and at the versions "
        "for which the engine lists this model",
        details=first_offenders([*problems, *lines]),
    )


def _same_logprobs(ours: Generation, theirs: Generation) -> bool:
    if ours.top_logprobs is None or theirs.top_logprobs is None:
        return False
    return np.array_equal(ours.top_logprobs, theirs.top_logprobs) and np.array_equal(ours.top_ids, theirs.top_ids)  # type: ignore[arg-type]


def _difference(ours: Generation, theirs: Generation) -> str:
    pairs = enumerate(zip(ours.token_ids, theirs.token_ids, strict=False))
    first = next((position for position, (own, other) in pairs if own != other), None)
    if first is not None:
        return f"other tokens from position {first} on"
    if len(ours.token_ids) != len(theirs.token_ids):
        return f"{len(ours.token_ids)} tokens alone, {len(theirs.token_ids)} in a batch"
    if ours.top_logprobs is None or theirs.top_logprobs is None or ours.top_logprobs.shape != theirs.top_logprobs.shape:
        return "log-probabilities are missing"
    return f"same tokens, log-probabilities differ by up to {np.abs(ours.top_logprobs - theirs.top_logprobs).max():.3g} nats"
