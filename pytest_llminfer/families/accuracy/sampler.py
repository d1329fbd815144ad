"""Whether the sampler that acted is the one that was asked for: at temperature 0 it takes the likeliest token, step by step.

A penalty or a filter that an engine takes from a model's generation defaults changes few answers, and hardly an outcome: what it
chose beside the distribution of the same step is what shows it. No record is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.families.accuracy.recorded import first_ids
from pytest_llminfer.numerics.near_ties import UNKNOWN_LOGIT, rounding_step
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.families.accuracy.grading import Answer
    from pytest_llminfer.observations.generation import Generation

TOP = 2
"""Likeliest tokens a step to ask for: with the first alone a tie cannot be told from another choice."""

_PRINTED = 1e-4
"""Nats. What a log-softmax in float32, or a server's decimal text, may add to a difference of none."""


def off_argmax(generation: Generation, *, dtype: str) -> tuple[float, int] | None:
    """By how many nats a chosen token fell short of the likeliest at most, and how many chosen tokens lie beyond a tie.

    Two logits that ``dtype`` cannot tell apart differ by no more than one rounding step of the largest: what is chosen among
    those is a tie. A chosen token that is not among the reported ones is at least as far down as the last of them. The end
    token is a choice like any other. None without log-probabilities.
    """
    if generation.top_ids is None or generation.top_logprobs is None or not len(generation.top_ids):
        return None
    import numpy as np

    steps = min(len(generation.token_ids), len(generation.top_ids))
    chosen = np.asarray(generation.token_ids[:steps])[:, None]
    ids, likely = generation.top_ids[:steps], generation.top_logprobs[:steps].astype(np.float64)
    listed = ids == chosen
    own = np.where(listed.any(axis=1), np.where(listed, likely, -np.inf).max(axis=1), likely[:, -1])
    slack = likely[:, 0] - own
    largest = generation.max_logit
    known = [UNKNOWN_LOGIT] if largest is None else [abs(float(value)) for value in largest[:steps]]
    ties = np.maximum([rounding_step(value, dtype) for value in known], _PRINTED)
    beyond = ~(slack <= ties)  # nan is no tie
    return float(slack.max(initial=0.0)), int(beyond.sum())


def check_sampler(*, answers: Mapping[str, Answer], dtype: str) -> Verdict:
    """Whether every token of greedy answers is the likeliest of the engine's own distribution at that step; INVALID where not.

    answers: by question id; those without log-probabilities say nothing, INCONCLUSIVE where all are so. dtype: of the logits.
    An engine that reports its distribution after penalties shows nothing here: compare the distributions themselves
    (:func:`pytest_llminfer.families.tokens.distributions.check_same_distributions`).
    """
    seen = {name: answer for name, answer in answers.items() if answer.off_argmax is not None}
    struck = [name for name, answer in seen.items() if answer.unlikely]
    tokens, unlikely = sum(answer.tokens for answer in seen.values()), sum(answer.unlikely for answer in seen.values())
    largest = max((answer.off_argmax or 0.0 for answer in seen.values()), default=0.0)
    outcome = Outcome.INVALID if struck else Outcome.PASS if tokens else Outcome.INCONCLUSIVE
    where = f"in answers to {len(struck):,} questions"
    details = f"{unlikely:,} tokens of {tokens:,} {where}, by up to {largest:.3g} nats: {first_ids(struck)}"
    return Verdict(
        outcome=outcome,
        claim="greedy answers hold the likeliest token of every step, by the engine's own distribution before penalties",
        key=f"{unlikely:,} tokens" if tokens else "no log-probabilities",
        measurements=(
            Measurement("tokens that were not the likeliest", unlikely, "tokens", tokens, where),
            Measurement(
                "largest shortfall to the likeliest token", largest, "nats", tokens, f"{len(seen):,} answers with log-probabilities"
            ),
        ),
        threshold=f"no token beyond a tie: one rounding step of {dtype} at the largest logit",
        threshold_source="greedy decoding by definition",
        smallest_detectable=f"one token of {tokens:,}" if tokens else "none: no answer came with log-probabilities",
        advice=(
            "a penalty or another sampler acts that was not asked for: look at the engine's sampling defaults and at the model's "
            "generation_config.json (repetition_penalty), and at min_tokens and logit processors"
        ),
        details=(details,) * bool(struck),
    )
