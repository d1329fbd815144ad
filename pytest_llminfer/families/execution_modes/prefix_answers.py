"""Answers over cached prefixes, beside those that are computed anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llminfer.datasets.load import SYNTHETIC, load
from pytest_llminfer.engines.capabilities import need
from pytest_llminfer.families.execution_modes.divergences import kl_of_answers
from pytest_llminfer.families.execution_modes.prefixes import CachedTokens, whole_blocks
from pytest_llminfer.families.tokens.observe import TOP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.execution_modes.check import Comparison
    from pytest_llminfer.families.execution_modes.observe import ExecutionModes
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.observations.generation import Generation

PREFIX_PROMPTS, PREFIX_TOKENS, SHORTEST_PREFIX = 8, 16, 96


@dataclass(frozen=True)
class PrefixAnswers:
    """Answers to the same prompts with and without a cached prefix: first the prompts, then each with one token changed.

    Attributes:
        prompts: Token ids of these prompts, in the order of the answers.
        cached: How much of each prompt was found in the prefix cache.
        fresh: Answers right after the cache was emptied.
        found: Answers over what the cache held, in the same order.
    """

    prompts: list[list[int]]
    cached: list[CachedTokens]
    fresh: list[Generation]
    found: list[Generation]

    @classmethod
    def ask(cls, engine: Engine) -> PrefixAnswers:
        """Each prompt cold and warm; then with a token of its last cached block changed, on the warm cache and on an empty one.

        Raises:
            UnsupportedError: the engine keeps no prefixes, or does not tell how much of one it found.
        """
        need(engine, "reset_prefix_cache", f"{engine.spec} keeps no prefixes that could be forgotten ('reset_prefix_cache')")
        block = engine.kv_pool().block_size
        prompts = prefix_prompts(engine.model, block)
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
        return cls([*prompts, *changed], cached, [*cold, *anew], [*warm, *flipped])

    def of_repeated(self, modes: ExecutionModes) -> Comparison:
        """Answers over a cached prefix, beside those that were computed anew."""
        return self._compared(slice(None, len(self.cached)), modes)

    def of_changed(self, modes: ExecutionModes) -> Comparison:
        """The same of prompts that differ from a cached one in a token."""
        return self._compared(slice(len(self.cached), None), modes)

    def _compared(self, part: slice, modes: ExecutionModes) -> Comparison:
        prompts, found, fresh = self.prompts[part], self.found[part], self.fresh[part]
        errors = modes.unrounded.of_answers(prompts, found, fresh)
        return modes.compared(kl_of_answers(found, fresh), errors)


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
