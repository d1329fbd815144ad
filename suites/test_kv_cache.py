"""The KV cache changes how tokens are computed, never which ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.checks.distributions import check_same_distributions
from pytest_llminfer.checks.kv_cache import check_cache_prefix, check_cache_shape, check_same_greedy_tokens

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.judging import Judge

PROMPTS, MAX_TOKENS, TOP = 6, 24, 5


@pytest.mark.parametrize("route", ["no_cache", "loop"])
def test_greedy_tokens_do_not_depend_on_the_cache(engine: Engine, prompts: list[list[int]], judge: Judge, route: str) -> None:
    """The engine's own generation equals one that computes every prefix anew, and a hand-written loop over the cache."""
    own = engine.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP)
    reference = engine.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP, route=route)
    for check, what in ((check_same_greedy_tokens, "tokens"), (check_same_distributions, "probabilities")):
        claim = f"greedy generation gives the {what} of route {route!r}"
        judge(check(candidate=own, reference=reference, dtype=engine.info.dtype, claim=claim))


def test_cache_has_the_shape_and_bytes_of_the_configuration(engine: Engine, prompts: list[list[int]], judge: Judge) -> None:
    """(batch, kv_heads, length, head_dim) in every layer, and not a byte more than keys and values take."""
    shape = engine.model.shape
    report = engine.kv_cache(prompts[0], extend=8)
    judge(
        check_cache_shape(
            report=report, layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=engine.info.kv_dtype
        )
    )


def test_decoding_leaves_the_cached_prompt_unchanged(engine: Engine, prompts: list[list[int]], judge: Judge) -> None:
    """What was cached for the prompt is bit-equal after more tokens were decoded."""
    judge(check_cache_prefix(report=engine.kv_cache(prompts[0], extend=16)))


@pytest.fixture(scope="session")
def prompts(engine: Engine) -> list[list[int]]:
    """Chat prompts where the model has a tokenizer, drawn token ids otherwise."""
    return engine.model.prompts(PROMPTS)
