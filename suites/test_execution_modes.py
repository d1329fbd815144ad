"""One engine, many execution modes: decode and prefill, alone and in a batch, cached and anew, give the same up to its own
rounding.

Variants that need an engine of their own (a tiny pool, other chunks, a cache of fewer bits) run with `--kv-variants`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.engines.profiles import variants
from pytest_llminfer.families.execution_modes.batch_invariance import check_batch_invariance
from pytest_llminfer.families.execution_modes.check import check_execution_modes
from pytest_llminfer.families.execution_modes.divergences import kl_of_answers
from pytest_llminfer.families.execution_modes.observe import ExecutionModes
from pytest_llminfer.families.execution_modes.preemption import check_preempted
from pytest_llminfer.families.execution_modes.prefix_answers import PrefixAnswers
from pytest_llminfer.families.execution_modes.prefixes import check_prefix_hits
from pytest_llminfer.families.execution_modes.resynchronised import check_resynchronised_tokens
from pytest_llminfer.families.execution_modes.texts import promised_invariance, refuse_flat, resynchronised
from pytest_llminfer.families.execution_modes.variants import Variant
from pytest_llminfer.families.kv_cache.pool import check_kv_pool

if TYPE_CHECKING:
    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.execution_modes.unrounded import Unrounded
    from pytest_llminfer.families.execution_modes.variants import KVVariants
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.plugin.judging import Judge

pytestmark = [pytest.mark.llminfer_only(dp=1), pytest.mark.llminfer_needs("generate:logprobs")]
"""Replicas are the same engine several times."""
keeps_prefixes = pytest.mark.llminfer_needs("reset_prefix_cache", "kv_pool")
asked_for = pytest.mark.llminfer_needs(option="--kv-variants")

VARIANTS = (
    Variant("no-prefix-caching", variants("no-prefix-caching")),
    Variant("small-chunks", variants("small-chunks")),
    Variant("eager", variants("eager"), gpu=True),
    Variant("tiny-pool", variants("tiny-pool"), preempts=True),
    Variant(
        "batch-invariant-kernels",
        variants("batch-invariant-kernels"),
        variables={"VLLM_BATCH_INVARIANT": "1"},
        gpu=True,
        invariant="VLLM_BATCH_INVARIANT=1",
    ),
    Variant("deterministic-inference", variants("deterministic-inference"), gpu=True, invariant="enable_deterministic_inference"),
    Variant("kv-fp8", variants("kv-fp8"), kv_dtype="fp8"),
    Variant("kv-q8_0", variants("kv-q8_0"), kv_dtype="q8_0"),
    Variant("kv-q4_0", variants("kv-q4_0"), kv_dtype="q4_0"),
)
"""A line for each way to start an engine otherwise; the profiles of engines say with which arguments."""
UNQUANTIZED, QUANTIZED = (
    [
        pytest.param(variant, id=variant.name, marks=pytest.mark.llminfer_only(engine=tuple(variant.arguments)))
        for variant in VARIANTS
        if bool(variant.kv_dtype) is quantized
    ]
    for quantized in (False, True)
)
"""Each for the engines that have arguments for it."""


@pytest.fixture(scope="module")
def execution_modes(engine: Engine, llminfer_unrounded: Unrounded) -> ExecutionModes:
    """How undecided texts go on, decoded in a batch and alone."""
    return ExecutionModes.ask(engine, llminfer_unrounded)


@pytest.fixture(scope="module")
def prefixes(engine: Engine) -> PrefixAnswers:
    """Answers over cached and over empty prefixes."""
    return PrefixAnswers.ask(engine)


@pytest.mark.llminfer_needs("score_top")
def test_decode_gives_what_prefill_gives(execution_modes: ExecutionModes, judge: Judge) -> None:
    """Every answer, decoded over the cache, against the same tokens in one pass."""
    judge(execution_modes.decode_from_prefill().judged("decoding gives the distributions that prefill gives for the same tokens"))


@pytest.mark.llminfer_needs("score", "score:decode")
def test_forced_decode_gives_what_prefill_gives(execution_modes: ExecutionModes, judge: Judge) -> None:
    """Given tokens fed one by one from the first on, where the engine can be made to."""
    found = execution_modes.teacher_forced_from_prefill()
    judge(found.judged("teacher-forced decode gives the same log-probabilities as prefill"))


@pytest.mark.llminfer_needs("score_top")
def test_a_batch_changes_no_more_than_rounding(
    engine: Engine, greedy: Greedy, execution_modes: ExecutionModes, baseline: Baseline, judge: Judge
) -> None:
    """Distributions, and tokens to their end, near ties resynchronised. The noise of decode and of prefill is kept."""
    baseline.keep(
        "kv_noise", observed=execution_modes.noise_floors(), n=sum(len(answer.token_ids) for answer in execution_modes.batched)
    )
    judge(execution_modes.alone_from_batch().judged("decoding in a batch gives the distributions of each prompt alone"))
    judge(
        check_resynchronised_tokens(
            candidate=greedy.one_by_one,
            reference=greedy.batched,
            teacher_forced=resynchronised(engine, greedy.prompts, greedy.one_by_one, greedy.batched, greedy.noise),
            dtype=greedy.dtype,
            noise=greedy.noise,
            rms=greedy.rms,
            claim="decoding in a batch gives the tokens of each prompt alone, near ties aside",
        )
    )


def test_batch_invariance(engine: Engine, greedy: Greedy, judge: Judge) -> None:
    """A measured rate; bitwise equality where the engine promises it."""
    refuse_flat(engine, greedy.batched)
    judge(check_batch_invariance(alone=greedy.one_by_one, batched=greedy.batched, promised=promised_invariance(engine)))


@keeps_prefixes
def test_prefixes_are_found_to_the_block_and_not_beyond_a_changed_token(
    engine: Engine, prefixes: PrefixAnswers, judge: Judge
) -> None:
    """Counts first: without a hit, the next test compares nothing."""
    judge(check_prefix_hits(found=prefixes.cached, block=engine.kv_pool().block_size))


@keeps_prefixes
def test_a_cached_prefix_changes_no_more_than_rounding(
    prefixes: PrefixAnswers, execution_modes: ExecutionModes, judge: Judge
) -> None:
    """Decoded answers over a cached prefix against those computed anew, for repeated prompts and for changed ones."""
    for which, found in (
        ("repeated", prefixes.of_repeated(execution_modes)),
        ("changed", prefixes.of_changed(execution_modes)),
    ):
        judge(found.judged(f"answers to {which} prompts over a cached prefix are those that are computed anew"))


@asked_for
@pytest.mark.parametrize("variant", UNQUANTIZED)
def test_a_variant_gives_the_same_answers(
    kv_variants: KVVariants, greedy: Greedy, execution_modes: ExecutionModes, judge: Judge, variant: Variant
) -> None:
    """Started otherwise, with an engine of its own: the tokens and distributions of the cell."""
    found = kv_variants.ask(variant)
    if variant.preempts and found.counters is not None:
        judge(check_preempted(counters=found.counters, requests=len(found.batched)))
    if variant.invariant:
        judge(check_batch_invariance(alone=found.alone, batched=found.batched, promised=variant.invariant))
    judge(
        check_resynchronised_tokens(
            candidate=found.batched,
            reference=greedy.batched,
            teacher_forced=found.teacher_forced,
            dtype=greedy.dtype,
            noise=greedy.noise,
            rms=greedy.rms,
            claim=f"{variant} gives the tokens of the cell, near ties aside",
        )
    )
    judge(execution_modes.from_batch(found.open_ended).judged(f"{variant} gives the distributions of the cell"))


@asked_for
@pytest.mark.llminfer_only(kv_dtype=("auto", "bf16", "fp16", "fp32"))
@pytest.mark.parametrize("context", ["short", "long"])
@pytest.mark.parametrize("variant", QUANTIZED)
def test_a_quantized_cache_differs_as_much_as_its_format(
    engine: Engine, kv_variants: KVVariants, greedy: Greedy, judge: Judge, variant: Variant, context: str
) -> None:
    """Its bytes, exactly; and not more than the format may change, nor as little as rounding. Long: 16,384 tokens, on a GPU."""
    refuse_flat(engine, greedy.batched)
    found = kv_variants.long(variant) if context == "long" else kv_variants.ask(variant)
    if found.pool is not None:
        shape = engine.model.shape
        sizes = {"layers": shape.layers, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
        copies = max(1, engine.spec.tp // shape.kv_heads)
        judge(check_kv_pool(pool=found.pool, **sizes, dtype=variant.kv_dtype, copies=copies))
    pair = (found.long, found.long_reference) if context == "long" else (found.batched, found.reference)
    judge(
        check_execution_modes(
            candidate=kl_of_answers(*pair),
            noise=kl_of_answers(greedy.one_by_one, greedy.batched),
            dtype=greedy.dtype,
            kv_dtype=variant.kv_dtype,
            claim=f"a cache of {variant.kv_dtype} gives the distributions of the cell, as far off as its format implies",
        )
    )
