"""Memory: weights against a prediction, the KV cache against its formula, peaks against a budget, and no growth at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.predict.declared_formats import formats
from pytest_llminfer.predict.formats import GROUP, FormatOptions
from pytest_llminfer.predict.layout import expected_layout
from pytest_llminfer.predict.weights import held_weights, stored_bytes
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.models.shape import ModelShape
    from pytest_llminfer.observations.kv_cache import CacheReport
    from pytest_llminfer.observations.memory import MemoryReport
    from pytest_llminfer.predict.rules import EngineRules

MIB = 2**20
RELATIVE = 0.003
ABSOLUTE_BYTES = 8 * MIB
SMALL_MODEL = 0.01
PEAK_FACTOR = 1.03
_LEAST_READINGS = 4
_GOES_ON = 3
"""New highs in the second half that mark a late rise as a leak: a late set-up rises only once."""
_COARSEST = 16


def predict_weights(
    *,
    shape: ModelShape,
    dtype: str,
    quantization: str,
    double_quantized: bool | None = None,
    engine: EngineRules,
    device: str = "",
    group_size: int | None = None,
) -> int:
    """Bytes of all weights with their quantization state, each tensor once: what their tensors hold, without rounding.

    device: the kind that the engine runs on, for formats that it repacks there (``declared_formats``); otherwise, and where that is
    not known, the format's own bytes. group_size: inputs that share a scale, of formats that have groups; -1 for all, None for the
    usual.

    Raises:
        UnsupportedError: a quantization whose storage is not known here.
        BadInputError: groups that do not divide the inputs of a linear.
    """
    if device and (quantization, device) in formats(engine):
        layout = expected_layout(
            shape=shape, dtype=dtype, quantization=quantization, engine=engine, device=device, group_size=group_size
        )
        return sum(weight.parameter.stored_bytes for weight in layout)
    options = FormatOptions(double_quantized=double_quantized, group_size=group_size or GROUP)
    return stored_bytes(held_weights(shape, dtype=dtype, quantization=quantization, engine=engine, options=options)[0])


def weights_tolerance(predicted: int) -> int:
    """How far weights may be from their prediction, in bytes: max(0.3 %, min(8 MiB, 1 %)).

    What an engine registers beside the weights may take 8 MiB (docs/methods.md#memory-gates). On a model of a few MB that is more
    than the whole model and would hide every fault, so the absolute part is held to 1 %: the bytes of tensors are exact on every
    device. A copy of the output matrix or another quantization is far more than that; single tensors are the layout check's.
    """
    return int(max(RELATIVE * predicted, min(ABSOLUTE_BYTES, SMALL_MODEL * predicted)))


def either_way(difference: int, baseline: int, tolerance: int) -> int:
    """The limit at ``tolerance`` from a baseline, above it where ``difference`` is not negative, otherwise below."""
    return baseline + tolerance if difference >= 0 else baseline - tolerance


def check_weights(*, report: MemoryReport, predicted: int) -> Verdict:
    """Whether the weights take the predicted bytes, neither more nor less.

    More: a copy, a tie that was broken, a wider dtype. Less: another quantization than was asked for, a missing part.
    predicted: in bytes, from :func:`predict_weights`.
    """
    tolerance, difference = weights_tolerance(predicted), report.weights_bytes - predicted
    empty = report.weights_bytes <= 0 or predicted <= 0
    direction = "larger" if difference > 0 else "smaller"
    lines = ["nothing was compared: no weights were measured or predicted"] if empty else []
    if abs(difference) > tolerance:
        lines.append(f"weights are {abs(difference):,} bytes {direction} than predicted ({_percent(difference, predicted)})")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="the weights take the memory that the model's shape and quantization imply",
        key=_size(report.weights_bytes),
        measurements=(
            Measurement(
                "weights", report.weights_bytes, "bytes", 1, "exact", predicted, either_way(difference, predicted, tolerance)
            ),
            Measurement("predicted", predicted, "bytes"),
            Measurement("buffers", report.buffers_bytes, "bytes", 1, "not counted"),
            Measurement("in use", report.live_bytes, "bytes", 1, f"on {report.device}, read from {report.measured_by}"),
        ),
        threshold=f"difference of at most {tolerance:,} bytes either way",
        threshold_source="max(0.3 %, min(8 MiB, 1 %)) of the prediction from the model's configuration",
        smallest_detectable=f"{tolerance + 1:,} bytes ({_percent(tolerance, predicted)})",
        advice="the layout check names the tensors; too large is often a second copy or fp32, too small another quantization",
        details=tuple(lines),
    )


def check_kv_bytes_per_token(*, report: CacheReport, expected: int) -> Verdict:
    """Whether the KV cache grows by exactly the bytes a token that the model's shape implies.

    expected: ``ModelShape.kv_bytes_per_token(kv_dtype)``, for one sequence.
    """
    before, after = (sum(layer.stored_bytes for layer in layers) for layers in (report.layers, report.extended_layers))
    tokens_in_all = report.prompt_tokens + report.extended_tokens
    lines = [] if report.prompt_tokens and report.extended_tokens else ["nothing was compared: no tokens, or none decoded"]
    for name, stored, tokens in (
        ("the prompt", before, report.prompt_tokens),
        ("the tokens decoded after it", after - before, report.extended_tokens),
    ):
        if tokens and stored != expected * tokens:
            excess = _percent(stored - expected * tokens, expected * tokens)
            lines.append(f"{name}: {stored / tokens:,.1f} bytes a token instead of {expected:,} ({excess})")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"the KV cache takes {expected:,} bytes a token",
        key=f"{before / report.prompt_tokens:,.0f} B/token" if report.prompt_tokens else "no tokens",
        measurements=(
            Measurement("cache after the prompt", before, "bytes", report.prompt_tokens, "exact", expected * report.prompt_tokens),
            Measurement("cache after decoding", after, "bytes", tokens_in_all, "exact", expected * tokens_in_all),
        ),
        threshold=f"exactly {expected:,} bytes a token",
        threshold_source="2 x layers x kv_heads x head_dim x bytes, from the model's configuration",
        smallest_detectable="exact",
        advice="look at the cache's dtype, and at whether grouped heads are stored expanded",
        details=tuple(lines),
    )


def check_peak(*, measured: int, budget: int, budget_source: str, resolution: int, what: str = "peak memory") -> Verdict:
    """Whether a peak is at most 1.03 x budget + resolution (docs/methods.md#memory-gates). A lower one always passes.

    All in bytes. resolution: how finely the peak could be read (``MemoryReport.resolution_bytes``).

    A coarse reading lowers the power of the check and does not void it. A process's resident set is read to tens of MiB, more
    than a small model takes, yet its peaks repeat within a few MiB, and a rise by more than the limit is a finding. So PASS
    stands and claims no more than that limit: ``smallest_detectable`` says which rise it would have seen. A smaller one, such
    as a second copy of a small model, goes unseen here; the weights check is exact for it. Only a resolution above 16 x the
    budget is INCONCLUSIVE: a peak of 17 times the budget would pass, so passing says nothing.
    """
    limit = int(PEAK_FACTOR * budget) + resolution
    lines: list[str] = []
    outcome, advice = Outcome.PASS, ""
    if measured <= 0:
        outcome, advice = Outcome.FAIL, "look at how the peak is read on this device"
        lines.append(f"nothing was measured: a peak of {measured} bytes")
    elif budget <= 0:
        outcome, advice = Outcome.INVALID, "record a budget from a run on this hardware"
        lines.append(f"a budget of {budget} bytes cannot be compared with")
    elif measured > limit:
        outcome, advice = Outcome.FAIL, "look for temporaries and copies; if more memory is meant, record a new baseline"
        lines.append(f"{what} is {measured - budget:,} bytes above its budget ({_percent(measured - budget, budget)})")
    elif resolution > _COARSEST * budget:
        outcome, advice = Outcome.INCONCLUSIVE, "measure on a device with an allocator of its own, or a larger model"
        lines.append(f"the peak can only be read to {resolution:,} bytes, more than {_COARSEST} x the whole budget")
    return Verdict(
        outcome=outcome,
        claim=f"{what} stays within {limit:,} bytes",
        key=_size(measured),
        measurements=(
            Measurement(what, measured, "bytes", 1, f"read to {resolution:,} bytes", baseline=budget, limit=limit),
            Measurement("budget", budget, "bytes", spread=_percent(measured - budget, budget) if budget > 0 else ""),
        ),
        threshold=f"at most {limit:,} bytes: 1.03 x budget + {resolution:,} bytes of resolution",
        threshold_source=budget_source,
        smallest_detectable=f"{limit - budget + 1:,} bytes above the budget ({_percent(limit - budget + 1, budget)}): "
        "3 % of it, and the resolution"
        if budget > 0
        else "none: no budget",
        advice=advice,
        details=tuple(lines),
    )


def check_no_growth(*, live_bytes: Sequence[int], warm_up: int = 2) -> Verdict:
    """Whether memory in use stays the same from one identical request to the next, to the byte.

    live_bytes: a reading after each request; the first ``warm_up`` are not judged (workspaces, caches, lazy set-up). FAIL if the
    lowest reading of the second half lies above the lowest of the first: a slope that no garbage waiting for collection
    explains; or if the last third lies above the whole first half and keeps rising: a leak that began late. Risen once and
    level since, or risen in the last reading alone, is INCONCLUSIVE.
    """
    steady = live_bytes[warm_up:]
    half = len(steady) // 2
    outcome, advice, lines = Outcome.PASS, "", []
    growth = min(steady[half:]) - min(steady[:half]) if half else 0
    late = min(steady[-(len(steady) // 3) :]) - max(steady[:half]) if half else 0
    if growth <= 0 < late and _new_highs(steady, after=half) >= _GOES_ON:
        growth = late
    if not live_bytes:
        outcome, advice, lines = Outcome.FAIL, "look at why no request was made", ["nothing was compared: no readings"]
    elif len(steady) < _LEAST_READINGS:
        outcome, advice = Outcome.INCONCLUSIVE, f"make at least {warm_up + _LEAST_READINGS} requests"
        lines = [f"{len(steady)} readings after warm-up are too few"]
    elif growth > 0:
        outcome, advice = Outcome.FAIL, "look for what each request leaves behind: cache blocks, outputs, hooks, graphs"
        lines = [f"memory in use grew by {growth:,} bytes over {len(steady)} identical requests: {_readings(steady)}"]
    elif late > 0:
        outcome, advice = Outcome.INCONCLUSIVE, "make more requests: a leak continues, a late set-up does not"
        lines = [f"memory in use rose by {late:,} bytes late, and stayed there: {_readings(steady)}"]
    elif steady[-1] > max(steady[:-1]):
        outcome, advice = Outcome.INCONCLUSIVE, "make more requests: a leak continues, a late set-up does not"
        lines = [f"the last request left {steady[-1] - max(steady[:-1]):,} bytes more than any before: {_readings(steady)}"]
    return Verdict(
        outcome=outcome,
        claim="identical requests leave no memory behind",
        key=f"{growth:+,} B" if growth > 0 else "no growth",
        measurements=(
            Measurement(
                "growth after warm-up", growth, "bytes", len(steady), "lowest of the second half less lowest of the first", limit=0
            ),
            Measurement("last reading", live_bytes[-1] if live_bytes else 0, "bytes", len(live_bytes)),
        ),
        threshold="0 bytes",
        threshold_source="identical requests have identical needs",
        smallest_detectable=f"1 byte every {half} requests" if half else "none: too few readings",
        advice=advice,
        details=tuple(lines),
    )


def _new_highs(values: Sequence[int], *, after: int) -> int:
    """How many readings from ``after`` on are above all before them."""
    return sum(value > max(values[:place]) for place, value in enumerate(values) if place >= after)


def _readings(values: Sequence[int]) -> str:
    shown = [f"{value:,}" for value in values]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", *shown[-3:]])  # noqa: PLR2004 - what fits in a line


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:+.2f} %" if whole else "no prediction"


def _size(size: int) -> str:
    unit, name = (2**30, "GiB") if size >= 2**30 else (MIB, "MiB")
    return f"{size / unit:,.2f} {name}"
