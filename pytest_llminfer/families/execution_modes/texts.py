"""What execution modes are asked: texts whose continuation is undecided, and how they are put to an engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.datasets.load import SYNTHETIC, load
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.divergence.observe import need_predictions
from pytest_llminfer.families.execution_modes.resynchronised import prompts_with_ties
from pytest_llminfer.families.tokens.observe import TOP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.observations.generation import Generation, Scores

TEXTS, TEXT_TOKENS, TEXT_STRIDE = 20, 20, 50
FLATTEST = 0.01
"""Nats between the likeliest token and the last one listed, in the median: an error of a tenth of that moves a KL by 1e-6."""


def open_texts(model: Model) -> list[list[int]]:
    """Questions that stop halfway, as plain text: how they go on is undecided, and that is where a damaged cache shows.

    The answers of a trained model to whole questions are so sure of themselves that positions shifted by one move their
    distributions by 1e-7 nats, and those of these texts by 0.05 (reference model, float32). Drawn token ids where there is no
    tokenizer.
    """
    if not model.has_tokenizer or model.weights == "dummy":
        return [prompt[: 24 + 3 * number] for number, prompt in enumerate(model.sample_prompts(TEXTS, 24 + 3 * TEXTS))]
    texts = [model.encode(problem.question) for problem in load(SYNTHETIC).problems[: TEXTS * TEXT_STRIDE : TEXT_STRIDE]]
    return [text[: len(text) // 2] for text in texts]


def continued(engine: Engine, texts: Sequence[list[int]]) -> list[Generation]:
    """How an engine goes on with texts, greedily."""
    return engine.generate(texts, max_tokens=TEXT_TOKENS, logprobs=TOP, ignore_eos=True)


def score_answers(engine: Engine, prompts: Sequence[Sequence[int]], answers: Sequence[Generation]) -> list[Scores]:
    """What the engine's prefill makes of each token of the answers, those of one length together.

    Raises:
        UnsupportedError: the engine does not tell what it predicts for given tokens.
    """
    need_predictions(engine)
    found: dict[int, Scores] = {}
    for length in sorted({len(answer.token_ids) for answer in answers}):
        numbers = [number for number, answer in enumerate(answers) if len(answer.token_ids) == length]
        sequences = [[*prompts[number], *answers[number].token_ids] for number in numbers]
        found |= dict(zip(numbers, engine.score_top(sequences, top=TOP, last=length), strict=True))
    return [found[number] for number in range(len(answers))]


def resynchronised(
    engine: Engine, prompts: Sequence[Sequence[int]], candidate: Sequence[Generation], reference: Sequence[Generation], noise: float
) -> Mapping[int, Scores]:
    """What the engine predicts for the reference's tokens, by the number of each prompt in which its own answer parts at a tie."""
    numbers = prompts_with_ties(candidate, reference, dtype=engine.info.dtype, noise=noise)
    if not numbers or not engine.supports("score_top"):
        return {}
    scores = score_answers(engine, [prompts[number] for number in numbers], [reference[number] for number in numbers])
    return dict(zip(numbers, scores, strict=True))


def refuse_flat(engine: Engine, answers: Sequence[Generation]) -> None:
    """Refuse to compare distributions that nothing could move.

    The dummy weights of vLLM and SGLang are within a thousandth of zero, norms included: on them every token is as likely as every
    other, and a cache of fp8 changes a distribution by 1e-17 nats, as no cache at all would.

    Raises:
        UnsupportedError: the likeliest tokens of most positions are equally likely, with the measured number.
    """
    listed = [answer.top_logprobs for answer in answers if answer.top_logprobs is not None and len(answer.top_logprobs)]
    if not listed:
        return
    spread = float(np.median(np.concatenate([np.ptp(logprobs, axis=1) for logprobs in listed])))
    if spread < FLATTEST:
        raise UnsupportedError(
            f"{engine.spec}: the {TOP} likeliest tokens of a position lie within {spread:.2g} nats of each other, "
            "so that no fault of the cache would show",
            "give weights that were trained",
        )


def promised_invariance(engine: Engine) -> str:
    """What promises that answers do not depend on the batch; empty where nothing does."""
    of = profile(engine.spec.engine)
    if of.invariant_variable and os.environ.get(of.invariant_variable) == "1":
        return f"{of.invariant_variable}=1"
    return of.invariant_argument if engine.engine_args.get(of.invariant_argument) else ""
