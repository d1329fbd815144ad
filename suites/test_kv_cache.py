"""The KV cache changes how tokens are computed, never which ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.families.execution_modes.rounding import check_rounding
from pytest_llminfer.families.kv_cache.check import check_cache_prefix, check_cache_shape
from pytest_llminfer.families.kv_cache.pool import check_kv_pool
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.families.tokens.distributions import check_same_distributions
from pytest_llminfer.families.tokens.observe import MAX_TOKENS, TOP

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.execution_modes.unrounded import Unrounded
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.plugin.judging import Judge


CACHE_PATHS = [pytest.param(path, marks=pytest.mark.llminfer_needs(f"generate:{path}")) for path in ("no_cache", "loop")]


@pytest.mark.llminfer_needs("generate:logprobs")
@pytest.mark.parametrize("cache_path", CACHE_PATHS)
def test_greedy_tokens_do_not_depend_on_the_cache(
    engine: Engine, greedy: Greedy, llminfer_unrounded: Unrounded, judge: Judge, cache_path: str
) -> None:
    """The engine's own generation equals one that recomputes every prefix, and a hand-written loop over the cache."""
    reference = engine.generate(greedy.prompts, max_tokens=MAX_TOKENS, logprobs=TOP, cache_path=cache_path)
    runs: Any = {"candidate": greedy.batched, "reference": reference, "dtype": engine.info.dtype}
    claim = f"greedy generation gives the {{}} of cache path {cache_path!r}"
    judge(check_same_greedy_tokens(**runs, noise=greedy.noise, claim=claim.format("tokens")))
    errors = llminfer_unrounded.of_answers(greedy.prompts, greedy.batched, reference)
    if errors is not None:
        judge(check_rounding(errors=errors, dtype=greedy.dtype, claim=claim.format("probabilities")))
    else:
        judge(check_same_distributions(**runs, claim=claim.format("probabilities")))


@pytest.mark.llminfer_needs("kv_cache")
def test_cache_has_the_shape_and_bytes_of_the_configuration(engine: Engine, prompt: list[int], judge: Judge) -> None:
    """(batch, kv_heads, length, head_dim) in every layer, and not a byte more than keys and values take."""
    shape = engine.model.shape
    report = engine.kv_cache(prompt, extend=8)
    judge(
        check_cache_shape(
            report=report, layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=engine.info.kv_dtype
        )
    )


@pytest.mark.llminfer_needs("kv_cache")
def test_decoding_leaves_the_cached_prompt_unchanged(engine: Engine, prompt: list[int], judge: Judge) -> None:
    """What was cached for the prompt is bit-equal after more tokens were decoded."""
    judge(check_cache_prefix(report=engine.kv_cache(prompt, extend=16)))


@pytest.mark.llminfer_needs("kv_pool")
def test_pool_is_as_large_as_its_blocks(engine: Engine, judge: Judge) -> None:
    """Engines that take their cache in advance: blocks x block size tokens, each of exactly the configuration's bytes."""
    shape = engine.model.shape
    judge(
        check_kv_pool(
            pool=engine.kv_pool(),
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=engine.info.kv_dtype,
            copies=max(1, engine.spec.tp // shape.kv_heads),
        )
    )


@pytest.fixture(scope="session")
def prompt(engine: Engine) -> list[int]:
    """A chat prompt where the model has a tokenizer, drawn token ids otherwise."""
    return engine.model.prompts(1)[0]
