"""Next-token distributions of two runs: close at every position that has the same context, not only in the token that won."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_llminfer.observations.generation import Generation

LARGEST = {"float32": 1e-3, "bfloat16": 0.3, "float16": 0.1}
MEAN = {"float32": 1e-4, "bfloat16": 0.01, "float16": 0.005}
"""Bounds of the difference in probability, the largest over all positions and the mean.

On the reference model two benign cache paths differ by 1e-5 at the most in fp32 and by 0.09 (mean 0.0008) in bf16, while positions
that are off by one give 0.03 and a lost cache block 1.0 in either: fp32 separates a subtle bug from rounding, bf16 a gross one.
"""


def check_same_distributions(
    *, candidate: Sequence[Generation], reference: Sequence[Generation], dtype: str, claim: str
) -> Verdict:
    """Whether two runs of the same prompts give the same probabilities to the tokens that both report.

    candidate, reference: greedy, in the same order, with top-k log-probabilities. Positions are compared up to and with
    the first at which the tokens differ. Per position: the largest absolute difference in probability over the tokens in
    both top-k lists; 1 where the lists have no token in common. dtype: of the logits, sets the bounds.
    """
    name = torch_dtype(dtype)
    found = [
        (difference, f"prompt {number}, position {position}: probabilities differ by {difference:.3g}")
        for number, (ours, theirs) in enumerate(zip(candidate, reference, strict=False))
        for position, difference in enumerate(_differences(ours, theirs))
    ]
    largest, mean = max((value for value, _ in found), default=0.0), sum(value for value, _ in found) / max(1, len(found))
    lines = [line for value, line in sorted(found, reverse=True) if value > LARGEST[name]]
    if mean > MEAN[name]:
        lines.insert(0, f"the mean difference is {mean:.3g}")
    if not found:
        lines.insert(0, "nothing was compared: no position with log-probabilities on both sides")
    if len(candidate) != len(reference):
        lines.insert(0, f"{len(candidate)} answers for {len(reference)} prompts: some were lost or added")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=f"{largest:.2g} probability",
        measurements=(
            Measurement("largest difference in probability", largest, "", len(found), f"at most {LARGEST[name]:g}"),
            Measurement("mean difference in probability", mean, "", len(found), f"at most {MEAN[name]:g}"),
        ),
        threshold=f"largest at most {LARGEST[name]:g} and mean at most {MEAN[name]:g} in {name}",
        threshold_source="benign cache paths and injected faults on the reference model",
        smallest_detectable=f"{LARGEST[name]:g} in the probability of one token",
        advice="run the same in fp32 (--dtype=fp32): there a bug stands out from rounding; then look at positions and cache slots",
        details=first_offenders(lines),
    )


def _differences(ours: Generation, theirs: Generation) -> Iterator[float]:
    if ours.top_ids is None or theirs.top_ids is None or ours.top_logprobs is None or theirs.top_logprobs is None:
        return
    import numpy as np

    for position, (own, other) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=False)):
        here = dict(zip(ours.top_ids[position].tolist(), np.exp(ours.top_logprobs[position]).tolist(), strict=True))
        there = dict(zip(theirs.top_ids[position].tolist(), np.exp(theirs.top_logprobs[position]).tolist(), strict=True))
        yield max((abs(here[token] - there[token]) for token in here.keys() & there.keys()), default=1.0)
        if own != other:
            return
