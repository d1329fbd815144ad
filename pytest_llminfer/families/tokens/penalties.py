"""Whether a penalty on tokens that are already there is part of the distribution that an engine reports.

An engine that reports its distribution after penalties (SGLang) always takes the likeliest token of it, and probabilities hardly
move where the model is sure. The log-odds of tokens that are in the text against tokens that are not move by much, and all one
way: a penalty of 1.05 takes 4.8 % of a logit, 0.5 to 0.8 nats, where two engines without one differ by less than 0.01.
"""

from __future__ import annotations

from statistics import fmean, stdev
from typing import TYPE_CHECKING

from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_llminfer.observations.generation import Generation

LARGEST_SHIFT = 0.1
"""Nats. On the reference model engines of one dtype differ by 0.004 at most and nf4 from bf16 by 0.03; the penalty gives 0.5."""

_ERRORS = 3.0


def shifts_of_seen_tokens(
    *, candidate: Sequence[Generation], reference: Sequence[Generation], prompts: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Of each prompt, and each step with the same context: how far seen tokens moved against unseen ones, in nats.

    Seen: in the prompt, or generated before. The mean difference of log-probability (candidate minus reference) of the seen
    tokens that both sides list, minus that of the unseen ones; steps that list none of either kind say nothing.
    """
    return [list(_shifts(*answers)) for answers in zip(candidate, reference, prompts, strict=True)]


def _shifts(ours: Generation, theirs: Generation, prompt: Sequence[int]) -> Iterator[float]:
    if ours.top_ids is None or theirs.top_ids is None or ours.top_logprobs is None or theirs.top_logprobs is None:
        return
    seen = set(prompt)
    for position, (own, other) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=False)):
        here = dict(zip(ours.top_ids[position].tolist(), ours.top_logprobs[position].tolist(), strict=True))
        there = dict(zip(theirs.top_ids[position].tolist(), theirs.top_logprobs[position].tolist(), strict=True))
        moved = {token: here[token] - there[token] for token in here.keys() & there.keys()}
        old, new = [by for token, by in moved.items() if token in seen], [by for token, by in moved.items() if token not in seen]
        if old and new:
            yield fmean(old) - fmean(new)
        if own != other:
            return
        seen.add(own)


def check_no_penalty(*, shifts: Sequence[Sequence[float]], claim: str) -> Verdict:
    """Whether the mean of ``shifts`` (:func:`shifts_of_seen_tokens`) is within 0.1 nats; INVALID where it is surely not.

    Surely: by three standard errors between prompts; INCONCLUSIVE between the two, and where fewer than two prompts say anything.
    """
    means = [fmean(steps) for steps in shifts if steps]
    count, mean = sum(map(len, shifts)), fmean(means) if means else 0.0
    error = stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0
    within, surely = abs(mean) <= LARGEST_SHIFT, abs(mean) - _ERRORS * error > LARGEST_SHIFT
    outcome = Outcome.PASS if within else Outcome.INVALID if surely else Outcome.INCONCLUSIVE
    if len(means) < 2:  # noqa: PLR2004 - a standard error
        outcome = Outcome.INCONCLUSIVE
    word = "less" if mean < 0 else "more"
    return Verdict(
        outcome=outcome,
        claim=claim,
        key=f"{mean:+.2g} nats",
        measurements=(
            Measurement(
                "log-odds of tokens that are in the text already", mean, "nats", count, f"standard error {error:.2g} over prompts"
            ),
        ),
        threshold=f"INVALID if beyond {LARGEST_SHIFT:g} nats by {_ERRORS:g} standard errors",
        threshold_source="clean engines and a repetition penalty of 1.05 on the reference model",
        smallest_detectable=f"{LARGEST_SHIFT + _ERRORS * error:.2g} nats",
        advice=(
            "a repetition, presence or frequency penalty acts that was not asked for: look at the engine's sampling defaults and "
            "at the model's generation_config.json"
        ),
        details=(f"tokens that are in the text already are {word} likely than recorded, by {abs(mean):.2g} nats",) * (not within),
    )
