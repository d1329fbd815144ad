"""The same tokens by several execution modes of one engine: what the checks of decode, prefill, batches and prefix caching
compare.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.datasets.load import SYNTHETIC, load
from pytest_llminfer.engines.capabilities import engines_that_answer
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.execution_modes.check import decoded, k3, kl_of_answers, kl_of_scores
from pytest_llminfer.families.execution_modes.prefixes import CachedTokens, whole_blocks
from pytest_llminfer.families.execution_modes.resynchronised import prompts_with_ties
from pytest_llminfer.families.tokens.observe import TOP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.observations.generation import Generation, Scores

TEXTS, TEXT_TOKENS, TEXT_STRIDE = 20, 20, 50
TEACHER_FORCED_TEXTS = 8
"""A decode cache path takes a step a token, those of the text included."""
FLATTEST = 0.01
"""Nats between the likeliest token and the last one listed, in the median: an error of a tenth of that moves a KL by 1e-6."""
PREFIX_PROMPTS, PREFIX_TOKENS, SHORTEST_PREFIX = 4, 16, 96


def score_answers(engine: Engine, prompts: Sequence[Sequence[int]], answers: Sequence[Generation]) -> list[Scores]:
    """What the engine's prefill makes of each token of the answers, those of one length together.

    Raises:
        UnsupportedError: the engine does not tell what it predicts for given tokens.
    """
    if not engine.supports("score_top"):
        raise UnsupportedError(
            f"{engine.spec.engine} does not tell what it predicts for given tokens ('score_top')",
            f"engines that do: {', '.join(engines_that_answer('score_top'))}",
        )
    found: dict[int, Scores] = {}
    for length in sorted({len(answer.token_ids) for answer in answers}):
        numbers = [number for number, answer in enumerate(answers) if len(answer.token_ids) == length]
        sequences = [[*prompts[number], *answers[number].token_ids] for number in numbers]
        found |= dict(zip(numbers, engine.score_top(sequences, top=TOP, last=length), strict=True))
    return [found[number] for number in range(len(answers))]


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


@dataclass(frozen=True)
class ExecutionModes:
    """Continuations of open texts, decoded all at once and one by one.

    Attributes:
        engine: The engine under test.
        texts: Token ids of each text.
        batched: Continuations of all texts in one request, in their order.
        alone: Continuations of each text in a request of its own, in the same order.
    """

    engine: Engine
    texts: list[list[int]]
    batched: list[Generation]
    alone: list[Generation]

    @classmethod
    def ask(cls, engine: Engine) -> ExecutionModes:
        """Decode both ways, exactly as many tokens each.

        Raises:
            UnsupportedError: the predictions are flat.
        """
        texts = open_texts(engine.model)
        batched = continued(engine, texts)
        refuse_flat(engine, batched)
        return cls(engine, texts, batched, [continued(engine, [text])[0] for text in texts])

    @property
    def dtype(self) -> str:
        """Of the logits."""
        return self.engine.info.dtype

    @cached_property
    def _prefilled(self) -> list[Scores]:
        return score_answers(self.engine, self.texts, self.batched)

    def decode_from_prefill(self) -> list[np.ndarray]:
        """The KL of every answer, decoded, from the same tokens by prefill."""
        return kl_of_scores([decoded(answer) for answer in self.batched], self._prefilled)

    def teacher_forced_from_prefill(self) -> list[np.ndarray]:
        """k3 of the tokens of some answers, text and answer fed one by one, from the same by prefill.

        Raises:
            UnsupportedError: the engine cannot be made to decode given tokens.
        """
        answers = self.batched[:TEACHER_FORCED_TEXTS]
        sequences = [[*text, *answer.token_ids] for text, answer in zip(self.texts, answers, strict=False)]
        sides = self.engine.score(sequences, cache_path="decode"), self.engine.score(sequences)
        return k3(*([logprobs[-TEXT_TOKENS:] for logprobs in side] for side in sides))

    def noise_of_decode(self) -> list[np.ndarray]:
        """The KL between decoding alone and in a batch."""
        return kl_of_answers(self.alone, self.batched)

    def noise_of_prefill(self) -> list[np.ndarray]:
        """The KL between prefill alone and in a batch."""
        alone = [score_answers(self.engine, [text], [answer])[0] for text, answer in zip(self.texts, self.batched, strict=True)]
        return kl_of_scores(alone, self._prefilled)

    def noise_floors(self) -> dict[str, float]:
        """The mean of each noise in nats, as it is kept of a cell."""
        sides = {"decode_alone_from_batch": self.noise_of_decode(), "prefill_alone_from_batch": self.noise_of_prefill()}
        return {name: float(np.mean([values.mean() for values in found])) for name, found in sides.items()}


def continued(engine: Engine, texts: Sequence[list[int]]) -> list[Generation]:
    """How an engine goes on with texts, greedily."""
    return engine.generate(texts, max_tokens=TEXT_TOKENS, logprobs=TOP, ignore_eos=True)


def resynchronised(
    engine: Engine, prompts: Sequence[Sequence[int]], candidate: Sequence[Generation], reference: Sequence[Generation], noise: float
) -> Mapping[int, Scores]:
    """What the engine predicts for the reference's tokens, by the number of each prompt in which its own answer parts at a tie."""
    numbers = prompts_with_ties(candidate, reference, dtype=engine.info.dtype, noise=noise)
    if not numbers or not engine.supports("score_top"):
        return {}
    scores = score_answers(engine, [prompts[number] for number in numbers], [reference[number] for number in numbers])
    return dict(zip(numbers, scores, strict=True))


@dataclass(frozen=True)
class PrefixAnswers:
    """Answers to the same prompts with and without a cached prefix: first the prompts, then each with one token changed.

    Attributes:
        cached: How much of each prompt was found in the prefix cache.
        fresh: Answers right after the cache was emptied.
        found: Answers over what the cache held, in the same order.
    """

    cached: list[CachedTokens]
    fresh: list[Generation]
    found: list[Generation]

    @classmethod
    def ask(cls, engine: Engine) -> PrefixAnswers:
        """Each prompt cold and warm; then with a token of its last cached block changed, on the warm cache and on an empty one.

        Raises:
            UnsupportedError: the engine keeps no prefixes, or does not tell how much of one it found.
        """
        if not engine.supports("reset_prefix_cache"):
            raise UnsupportedError(
                f"{engine.spec} keeps no prefixes that could be forgotten ('reset_prefix_cache')",
                f"engines that do: {', '.join(engines_that_answer('reset_prefix_cache'))}",
            )
        prompts = prefix_prompts(engine.model, engine.kv_pool().block_size)
        block = engine.kv_pool().block_size
        late = [whole_blocks(len(prompt) - 1, block) - 1 for prompt in prompts]
        changed = [_changed(prompt, position) for prompt, position in zip(prompts, late, strict=True)]

        def answer(asked: Sequence[list[int]], *, forgetting: bool = False) -> list[Generation]:
            if forgetting:
                engine.reset_prefix_cache()
            return engine.generate(asked, max_tokens=PREFIX_TOKENS, logprobs=TOP, ignore_eos=True)

        cold, warm, flipped = answer(prompts, forgetting=True), answer(prompts), answer(changed)
        first = answer([_changed(prompt, 0) for prompt in prompts])
        anew = answer(changed, forgetting=True)
        cached = [
            CachedTokens(
                len(prompt),
                cold[n].cached_tokens,
                warm[n].cached_tokens,
                ((late[n], flipped[n].cached_tokens), (0, first[n].cached_tokens)),
            )
            for n, prompt in enumerate(prompts)
        ]
        return cls(cached, [*cold, *anew], [*warm, *flipped])

    def kl_of_repeated(self) -> list[np.ndarray]:
        """The KL of answers over a cached prefix from those that were computed anew."""
        return kl_of_answers(self.found, self.fresh)[: len(self.cached)]

    def kl_of_changed(self) -> list[np.ndarray]:
        """The same of prompts that differ from a cached one in a token."""
        return kl_of_answers(self.found, self.fresh)[len(self.cached) :]


def prefix_prompts(model: Model, block: int) -> list[list[int]]:
    """Prompts of more than two blocks that begin with different tokens, so that none finds a part of another."""
    lengths = [max(2 * block + block // 2, SHORTEST_PREFIX) + 1 + number for number in range(PREFIX_PROMPTS)]
    if not model.has_tokenizer or model.weights == "dummy":
        return [prompt[:length] for prompt, length in zip(model.sample_prompts(PREFIX_PROMPTS, max(lengths)), lengths, strict=True)]
    prompts: dict[int, list[int]] = {}
    ids: list[int] = []
    for problem in reversed(load(SYNTHETIC).problems):
        # Text grows at its front, until it is long enough and begins as no other.
        ids = [*model.encode(f"{problem.question}\n\n"), *ids]
        if len(prompts) < PREFIX_PROMPTS and len(ids) >= lengths[len(prompts)] and ids[0] not in prompts:
            prompts[ids[0]] = ids[: lengths[len(prompts)]]
            ids = []
    return list(prompts.values())


def _changed(prompt: Sequence[int], position: int) -> list[int]:
    """The prompt with another of its own tokens at this position."""
    other = next(token for token in prompt if token != prompt[position])
    return [*prompt[:position], other, *prompt[position + 1 :]]


def promised_invariance(engine: Engine) -> str:
    """What promises that answers do not depend on the batch; empty where nothing does."""
    of = profile(engine.spec.engine)
    if of.invariant_variable and os.environ.get(of.invariant_variable) == "1":
        return f"{of.invariant_variable}=1"
    return of.invariant_argument if engine.engine_args.get(of.invariant_argument) else ""
