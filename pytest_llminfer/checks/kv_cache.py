"""The KV cache: the same tokens whichever way they were computed, the exact size, and contents that stay as they were."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_llminfer.checks.near_ties import STEPS, Divergence, first_divergence
from pytest_llminfer.checks.offenders import first_offenders
from pytest_llminfer.models.shape import item_bytes, torch_dtype
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.observations import CacheLayer, CacheReport, Generation

COMPARED = 0.9
"""The share of positions that must have been compared for PASS: a near tie ends the comparison of its prompt."""


def check_same_greedy_tokens(
    *, candidate: Sequence[Generation], reference: Sequence[Generation], dtype: str, claim: str, noise: float = 0.0
) -> Verdict:
    """Whether two runs of the same prompts chose the same tokens, but for ties within rounding.

    candidate, reference: in the same order, both greedy, both with top-k log-probabilities and the largest logit of each
    step; without them any difference fails. dtype: of the logits (fp32, fp16, bf16). At the first difference in a prompt both
    sides' margins must be at most two rounding steps at the largest logit (METHODS 3.4): in fp32 that is as good as exact.
    noise: in nats, between two benign schedules of the engine (``near_ties.measured_noise``): a margin up to twice that is a tie.
    The positions after a near tie have another context and are not compared: PASS needs 90 % of all positions compared.
    """
    failures: list[str] = []
    unresolved: list[str] = []
    ties: list[str] = []
    compared = 0
    for number, (ours, theirs) in enumerate(zip(candidate, reference, strict=False)):
        divergence = first_divergence(ours, theirs, dtype=dtype, noise=noise)
        if divergence is None:
            compared += len(theirs.token_ids)
            if ours.finish_reason != theirs.finish_reason:
                failures.append(f"prompt {number}: same tokens, but ended by {ours.finish_reason!r}, not {theirs.finish_reason!r}")
            continue
        compared += min(divergence.position + 1, len(theirs.token_ids))
        target = ties if divergence.is_tie else unresolved if divergence.is_unresolved else failures
        target.append(describe(number, divergence))
    if len(candidate) != len(reference):
        failures.insert(0, f"{len(candidate)} answers for {len(reference)} prompts: some were lost or added")

    total = sum(len(answer.token_ids) for answer in reference)
    distinct = len({token for answer in reference for token in answer.token_ids})
    share = compared / total if total else 0.0
    outcome, reason, advice = _greedy_outcome(total, distinct, share, failures, unresolved)
    return Verdict(
        outcome=outcome,
        claim=claim,
        key=f"{compared:,} tokens" if not failures else f"{len(failures)} of {len(reference)} differ",
        measurements=(
            Measurement("positions compared", compared, "tokens", total, f"{share:.1%} of the reference"),
            Measurement("prompts that differ", len(failures), "prompts", len(reference)),
            Measurement("near ties", len(ties), "prompts", len(reference), "the rest of these prompts was not compared"),
            Measurement("distinct tokens", distinct, "tokens", total),
        ),
        threshold=f"margin at a difference <= {STEPS} rounding steps of {torch_dtype(dtype)} at the largest logit"
        f"{f' or {2 * noise:.3g} nats' if noise else ''}, on both sides; "
        f"{COMPARED:.0%} of positions compared",
        threshold_source="floating-point format"
        + (" and twice the noise measured between batched and single prompts" if noise else ""),
        smallest_detectable="one other token whose margin exceeds that",
        advice=advice,
        details=first_offenders([*([reason] if reason else []), *failures, *unresolved, *(f"near tie, {line}" for line in ties)]),
    )


def _greedy_outcome(
    total: int, distinct: int, share: float, failures: list[str], unresolved: list[str]
) -> tuple[Outcome, str, str]:
    if not total:
        return Outcome.FAIL, "nothing was compared: the reference has no tokens", "look at the prompts and at max_tokens"
    if failures:
        advice = "look at what changed in attention, cache or position handling; a run in fp32 tells a bug from rounding"
        return Outcome.FAIL, "", advice
    if unresolved:
        reason = "a top-k list is too short to tell a tie from an error"
        return Outcome.INCONCLUSIVE, reason, "ask for more log-probabilities a step"
    if distinct == 1 and total > 1:
        reason = "the reference repeats one single token, which any error would repeat as well"
        return Outcome.INCONCLUSIVE, reason, "use a trained model, or other prompts"
    if share < COMPARED:
        reason = f"only {share:.1%} of positions were compared, because near ties ended the comparison"
        return Outcome.INCONCLUSIVE, reason, "compare in fp32, or use more and shorter prompts"
    return Outcome.PASS, "", ""


def describe(prompt: int, divergence: Divergence) -> str:
    """One line: where, which tokens, and by how much each side preferred its own."""
    tokens = (divergence.candidate_token, divergence.reference_token)
    ours, theirs = ("its end" if token is None else f"token {token}" for token in tokens)
    text = f"prompt {prompt}, position {divergence.position}: {ours} instead of {theirs}"
    if None in tokens:
        return f"{text}: the answers have different lengths"
    margins = [
        f"{margin:.3g}" if margin is not None else f"more than {least:.3g}" if math.isfinite(least) else "unknown"
        for margin, least in zip(divergence.margins, divergence.at_least, strict=True)
    ]
    return f"{text}, margin {margins[0]} nats here and {margins[1]} in the reference, tie up to {divergence.tolerance:.3g}"


def check_cache_shape(*, report: CacheReport, layers: int, kv_heads: int, head_dim: int, dtype: str, batch: int = 1) -> Verdict:
    """Whether keys and values have exactly the shape, dtype and bytes that the model's configuration implies.

    Shapes (batch, kv_heads, tokens, head_dim); bytes 2 x layers x kv_heads x head_dim x item x tokens x batch, after the
    prompt and after ``report.extended_tokens`` more. kv_heads: of the configuration, not the query heads. No sliding window.
    """
    item, dtype = item_bytes(dtype), torch_dtype(dtype)
    lines: list[str] = []
    stages = (
        ("after the prompt", report.layers, report.prompt_tokens),
        ("after decoding", report.extended_layers, report.prompt_tokens + report.extended_tokens),
    )
    for stage, found, tokens in stages:
        if len(found) != layers:
            lines.append(f"{stage}: {len(found)} layers, expected {layers}")
        shape = (batch, kv_heads, tokens, head_dim)
        for number, layer in enumerate(found):
            lines += (f"{stage}, layer {number}: {line}" for line in layer_differences(layer, shape, dtype, item))
    per_token = 2 * layers * kv_heads * head_dim * item * batch
    stored = [sum(layer.stored_bytes for layer in found) for _, found, _ in stages]
    if not report.prompt_tokens:
        lines.insert(0, "nothing was compared: the prompt has no tokens")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="the KV cache has exactly the shape, dtype and bytes that the model's configuration implies",
        key=f"{per_token:,} B/token",
        measurements=(
            *(
                Measurement(f"cache {stage}", size, "bytes", tokens, f"expected {per_token * tokens:,}")
                for (stage, _, tokens), size in zip(stages, stored, strict=True)
            ),
            Measurement("layers", len(report.layers), "layers", len(report.layers), f"expected {layers}"),
        ),
        threshold=f"exactly ({batch}, {kv_heads}, tokens, {head_dim}) of {dtype} for keys and values in {layers} layers",
        threshold_source="the model's configuration",
        smallest_detectable="exact",
        advice="compare kv_heads and head_dim with config.json: query heads in the cache mean that grouped heads were expanded",
        details=first_offenders(lines),
    )


def layer_differences(layer: CacheLayer, shape: tuple[int, ...], dtype: str, item: int) -> list[str]:
    """What is wrong with a layer's keys and values; ``item``: bytes of one element."""
    lines = [
        f"{name} have shape {found}, expected {shape}"
        for name, found in (("keys", tuple(layer.key_shape)), ("values", tuple(layer.value_shape)))
        if found != shape
    ]
    if layer.dtype.removeprefix("torch.") != dtype:
        lines.append(f"dtype {layer.dtype}, expected {dtype}")
    expected = 2 * math.prod(shape) * item
    if layer.stored_bytes != expected:
        lines.append(f"{layer.stored_bytes:,} bytes, expected {expected:,}")
    return lines


def check_cache_prefix(*, report: CacheReport) -> Verdict:
    """Whether decoding left the cached prompt as it was: every key and value bit-equal in every layer.

    Keys that changed alone point at positions, keys and values together at slots or blocks (METHODS 3.2).
    """
    changed = {number: pair for number, pair in enumerate(report.prefix_differences) if pair != (0.0, 0.0)}
    lines = [
        f"layer {number}: keys differ by up to {pair[0]:.3g}, values by up to {pair[1]:.3g}" for number, pair in changed.items()
    ]
    incomparable = [number for number, pair in changed.items() if any(map(math.isnan, pair))]
    if incomparable:
        lines.insert(0, f"no position in common before and after decoding in layers {', '.join(map(str, incomparable))}")
    elif changed:
        keys_only = all(values == 0.0 for _, values in changed.values())
        lines.insert(0, f"{'only keys' if keys_only else 'values'} changed: {'positions' if keys_only else 'slots'} are wrong")
    if len(report.prefix_differences) != len(report.layers):
        lines.insert(0, f"{len(report.prefix_differences)} layers were compared of {len(report.layers)}")
    if not report.prefix_differences or not report.prompt_tokens or not report.extended_tokens:
        lines.insert(0, f"nothing was compared: {report.prompt_tokens} prompt tokens, {report.extended_tokens} decoded after them")
    largest = max((abs(value) for pair in report.prefix_differences for value in pair), default=0.0)
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"decoding {report.extended_tokens} tokens left the cached prompt bit-equal",
        key=f"{len(changed)} layers changed" if changed else f"{len(report.prefix_differences)} layers equal",
        measurements=(
            Measurement("layers that changed", len(changed), "layers", len(report.prefix_differences)),
            Measurement("largest difference", largest, "", report.prompt_tokens, "over all layers, keys and values"),
        ),
        threshold="difference 0 in every layer",
        threshold_source="decoding only appends to a cache",
        smallest_detectable="exact",
        advice="look at cache writes of the decode step: slot mapping, position ids, block table",
        details=first_offenders(lines),
    )
