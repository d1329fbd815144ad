"""The KV cache changes how tokens are computed, never which ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.checks.distributions import check_same_distributions
from pytest_llminfer.checks.kv_cache import check_cache_prefix, check_cache_shape, check_same_greedy_tokens
from pytest_llminfer.checks.near_ties import measured_noise

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.judging import Judge
    from pytest_llminfer.observations import Generation

PROMPTS, MAX_TOKENS, TOP = 6, 24, 5


@pytest.mark.parametrize("route", ["no_cache", "loop"])
def test_greedy_tokens_do_not_depend_on_the_cache(
    engine: Engine, prompts: list[list[int]], own: Own, judge: Judge, route: str
) -> None:
    """The engine's own generation equals one that computes every prefix anew, and a hand-written loop over the cache."""
    reference = engine.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP, route=route)
    runs: Any = {"candidate": own.batched, "reference": reference, "dtype": engine.info.dtype}
    claim = f"greedy generation gives the {{}} of route {route!r}"
    judge(check_same_greedy_tokens(**runs, noise=own.noise, claim=claim.format("tokens")))
    judge(check_same_distributions(**runs, claim=claim.format("probabilities")))


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


@dataclass(frozen=True)
class Own:
    """The engine's own greedy answers to the prompts in one batch, and how far those to single prompts are from them, in nats."""

    batched: list[Generation]
    noise: float


@pytest.fixture(scope="session")
def own(engine: Engine, prompts: list[list[int]]) -> Own:
    """Two benign schedules of the same engine: their difference is its noise."""
    batched = engine.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP)
    single = [engine.generate([prompt], max_tokens=MAX_TOKENS, logprobs=TOP)[0] for prompt in prompts]
    return Own(batched, measured_noise(batched, single, dtype=engine.info.dtype))


@pytest.fixture(scope="session")
def prompts(engine: Engine) -> list[list[int]]:
    """Chat prompts where the model has a tokenizer, drawn token ids otherwise."""
    return engine.model.prompts(PROMPTS)
