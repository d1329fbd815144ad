"""Blockwise quantization: really applied, with the declared block, the defined codes, and to weights that it was made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.stats import codebooks
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BAND = 0.05
"""By how much the error on normal data may differ from that of the format's definition (docs/methods.md#round-trip)."""

ON_WEIGHTS = (0.5, 1.5)
"""The error of real weights over that of normal numbers: the same format on another distribution."""

CODE_TOLERANCE = 1e-6
"""The library's codebook is a table of float32: recomputed from the definition it differs by 1.1e-7 (docs/methods.md#codebooks)."""

MEAN_LIMIT, KURTOSIS_LIMIT = 0.02, 1.0
"""|mean| over standard deviation (docs/methods.md#round-trip), and excess kurtosis: that of a Student variable with ten degrees of
freedom is 1."""

_BARS = " ▁▂▃▄▅▆▇█"


def codes_of(name: str) -> np.ndarray:
    """The values that a format's codes stand for, ascending.

    Raises:
        UnsupportedError: a format whose codes are not known here.
    """
    known = {"nf4": codebooks.nf4, "fp4": codebooks.fp4, "int8": codebooks.int8}
    if name not in known:
        raise UnsupportedError(f"the codes of {name} are not known here", f"use one of: {', '.join(known)}")
    return known[name]()


def check_round_trip(*, values: np.ndarray, read: np.ndarray, name: str, block: int, declared: int | None) -> Verdict:
    """Whether numbers come back with the error of the declared format, neither more nor less.

    values (rows, columns): normal numbers. read: as a linear multiplies by them. block: values that share a scale, as the engine
    says, 0 for a row; declared: as the cell's layout declares it. Too small an error means that nothing was quantized.
    """
    expected = codebooks.loss(values, codes_of(name), declared or 0)
    found = float(np.sqrt(((read - values).astype(np.float64) ** 2).mean() / (values.astype(np.float64) ** 2).mean()))
    ratio = found / expected
    lines = []
    if (declared or 0) != block:
        lines.append(f"blocks of {block or 'a row'}, declared are {declared or 'rows'}")
    if not abs(ratio - 1) <= BAND:
        lines.append(
            f"{ratio:.3f} of the expected error: "
            + ("less than the format can lose" if ratio < 1 else "more than the format loses")
        )
    size = f"blocks of {declared}" if declared else "rows"
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"a linear stores normal numbers with the error of {name} in {size}",
        key=f"{found:.4f} relative error",
        measurements=(
            Measurement("relative RMS error", found, "", values.size, f"expected {expected:.4f}"),
            Measurement("over the expected", ratio, "", values.size),
        ),
        threshold=f"within {BAND:.0%} of the error of the format's definition, on both sides",
        threshold_source="the same numbers through the defined codebook (docs/methods.md#round-trip)",
        smallest_detectable=f"{BAND:.0%} of the error; the next block size changes it by 3 to 5 %",
        advice="an error near zero: the layer was left in 16 bits; another one: look at block size, codebook and scales",
        details=tuple(lines),
    )


def check_codebook(*, found: Mapping[str, Any], name: str) -> Verdict:
    """Whether the codes of a live model stand for the values of the format's definition, and all of them are used.

    found: ``code`` (16,), ``counts`` (16,) over all linears.
    """
    defined, code = codes_of(name), np.unique(np.asarray(found["code"], np.float64))
    same = code.shape == defined.shape
    largest = float(np.abs(code - defined).max()) if same else float("nan")
    unused = int((np.asarray(found["counts"]) == 0).sum())
    spare = len(found["counts"]) - len(defined)
    lines = [] if same else [f"{len(code)} different values, the definition has {len(defined)}"]
    lines += [f"a value differs from the definition by {largest:.3g}"] if same and not largest <= CODE_TOLERANCE else []
    lines += [f"{unused} of {len(found['counts'])} codes are never used"] if unused > spare else []
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"the codes stand for the values that {name} is defined by, and all are used",
        key=f"{len(code)} values",
        measurements=(
            Measurement("largest difference from the definition", largest, "", len(defined)),
            Measurement("codes never used", unused, "codes", int(np.sum(found["counts"]))),
        ),
        threshold=f"each value within {CODE_TOLERANCE:g}; at most {spare} codes unused",
        threshold_source="quantiles of the normal distribution (QLoRA) for nf4, the table of bitsandbytes for fp4",
        smallest_detectable=f"{CODE_TOLERANCE:g} in one value",
        advice="compare the engine's library version with the one that made the checkpoint",
        details=tuple(lines),
    )


def check_against_best(*, values: np.ndarray, read: np.ndarray, name: str, block: int) -> Verdict:
    """Whether a 4-bit format loses what its codebook implies beside the best 16 values that there could be for the same numbers."""
    fitted = codebooks.best(values, levels=16, block=block)
    best, defined = codebooks.loss(values, fitted, block), codebooks.loss(values, codes_of(name), block)
    found = float(np.sqrt(((read - values).astype(np.float64) ** 2).mean() / (values.astype(np.float64) ** 2).mean()))
    expected, ratio = defined / best, found / best
    good = abs(ratio / expected - 1) <= BAND and ratio >= 1
    return Verdict(
        outcome=Outcome.PASS if good else Outcome.FAIL,
        claim=f"{name} loses {expected:.3f} times as much of normal numbers as the best 16 values would",
        key=f"{ratio:.3f} of the best",
        measurements=(
            Measurement("relative RMS error", found, "", values.size),
            Measurement("of the best 16 values", best, "", values.size, "k-means on the same numbers"),
        ),
        threshold=f"at least 1 and within {BAND:.0%} of {expected:.3f}",
        threshold_source="the format's definition and k-means on the same numbers",
        smallest_detectable=f"{BAND:.0%} of the error",
        advice="below 1 the numbers were not stored in 4 bits with this block; above, the codebook or the scales are others",
    )


def check_double_quantization(*, plain: Mapping[str, Any], double: Mapping[str, Any], values: np.ndarray) -> Verdict:
    """Whether quantizing the scales saves the bits that it should and costs next to nothing.

    plain, double: ``values`` as read back, ``state_bits`` a value, of the same numbers without and with it. Saved at a block of 64:
    32/64 - 8/64 - 32/(64·256) bits (docs/methods.md#round-trip), less the codebook of the second level.
    """
    errors = [float(np.linalg.norm(side["values"] - values) / np.linalg.norm(values)) for side in (plain, double)]
    block = int(plain["block_size"])
    saved, expected = plain["state_bits"] - double["state_bits"], 32 / block - 8 / block - 32 / (block * 256)
    cost = errors[1] / errors[0] - 1
    lines = []
    # The second level's own codebook: 256 values of 32 bits over all numbers.
    if not abs(saved - expected) <= 256 * 32 / values.size + 1e-3:
        lines.append(f"{saved:.4f} bits a value were saved, expected {expected:.4f}")
    if np.array_equal(plain["values"], double["values"]):
        lines.append("the numbers are bit-equal with and without it: the scales were not quantized")
    if not abs(cost) <= 0.01:  # noqa: PLR2004 - scales of 8 bits: docs/methods.md#round-trip
        lines.append(f"it costs {cost:.2%} more error")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="quantizing the scales saves its bits and costs at most 1 % more error",
        key=f"{saved:.3f} bits for {cost:+.2%}",
        measurements=(
            Measurement("bits saved a value", saved, "bits", values.size, f"expected {expected:.4f}"),
            Measurement("error added", cost, "", values.size, f"{errors[0]:.5f} without, {errors[1]:.5f} with"),
        ),
        threshold="the bits exactly, the error within 1 %, and not bit-equal",
        threshold_source="docs/methods.md#round-trip",
        smallest_detectable="1 % of the error",
        advice="look at compress_statistics (bnb_4bit_use_double_quant) of the engine",
        details=tuple(lines),
    )


def check_loss_of_weights(*, found: Sequence[Mapping[str, Any]], name: str, block: int | None, seed: int = 20260101) -> Verdict:
    """Whether every linear lost of its checkpoint's weights what its format loses, give or take their distribution.

    found: per linear ``name`` and ``error``, relative RMS. An error near zero is a layer that was silently left alone.
    """
    normal = np.random.default_rng(seed).standard_normal((256, 4096))
    expected = codebooks.loss(normal, codes_of(name), block or 0)
    low, high = (factor * expected for factor in ON_WEIGHTS)
    lines = [
        f"{each['name']}: {each['error']:.4f}, "
        + ("as if it was not quantized" if each["error"] < low else "more than the format loses")
        for each in found
        if not low <= each["error"] <= high
    ]
    errors = [each["error"] for each in found]
    if not found:
        lines = ["nothing was compared: no linear is quantized"]
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"every linear lost of its weights what {name} loses",
        key=f"{np.mean(errors) if errors else float('nan'):.4f} relative error",
        measurements=(
            Measurement("linears out of bounds", len(lines), "linears", len(found)),
            Measurement("relative RMS error", float(np.mean(errors)) if errors else float("nan"), "", len(found), _range(errors)),
        ),
        threshold=f"{low:.4f} to {high:.4f}: {ON_WEIGHTS[0]} to {ON_WEIGHTS[1]} of what normal numbers lose",
        threshold_source="the format's definition on normal numbers",
        smallest_detectable="one linear left alone, or scaled wrongly",
        advice="a linear with no error was skipped: look at the modules that the quantization excludes",
        details=first_offenders(lines),
    )


def check_near_normal(*, found: Sequence[Mapping[str, Any]]) -> Verdict:
    """Whether weights can be quantized by their spread, and which are not what NF4 was made for: zero mean, near normal.

    found: per linear ``name``, ``values``, ``mean``, ``spread``, ``kurtosis`` (excess), ``histogram`` (16,) of four deviations.
    FAIL where a linear is constant or not finite. Heavy tails are no fault of an engine, the format only loses more of them: those
    linears are named first, with the same outcome.
    """
    broken: list[str] = []
    odd: list[str] = []
    shown: list[str] = []
    for each in found:
        # Chance alone moves a mean by 1/sqrt(n), a kurtosis by sqrt(24/n): three of those are no finding.
        noise = 3 / np.sqrt(each["values"])
        text = f"{_bars(each['histogram'])} {each['name']}: mean {each['mean']:+.2g}, kurtosis {each['kurtosis']:+.2f}"
        if not (np.isfinite(each["mean"]) and 0 < each["spread"] < np.inf):
            broken.append(f"{each['name']}: mean {each['mean']:g}, standard deviation {each['spread']:g}")
        elif abs(each["mean"]) / each["spread"] <= MEAN_LIMIT + noise and abs(each["kurtosis"]) <= KURTOSIS_LIMIT + noise * 24**0.5:
            shown.append(text)
        else:
            odd.append(f"{text}: not near normal")
    worst = max((abs(each["kurtosis"]) for each in found), default=float("nan"))
    if not found:
        broken = ["no linear holds floating-point weights"]
    return Verdict(
        outcome=Outcome.FAIL if broken else Outcome.PASS,
        claim="the weights of every linear are finite and vary; those far from zero mean and normal are named",
        key=f"{len(broken)} broken" if broken else f"{len(found) - len(odd)} of {len(found)} near normal",
        measurements=(
            Measurement("linears that are not near normal", len(odd), "linears", len(found)),
            Measurement("largest excess kurtosis", worst, "", len(found)),
        ),
        threshold=f"a finite mean, a finite positive standard deviation; near normal: |mean| <= {MEAN_LIMIT} standard deviations, "
        f"|excess kurtosis| <= {KURTOSIS_LIMIT}, chance aside",
        threshold_source="docs/methods.md#round-trip",
        smallest_detectable="one linear of equal or non-finite numbers; tails: a Student variable with ten degrees of freedom",
        advice="look at the checkpoint: a linear like this holds nothing that was trained",
        # All of them: the histogram of every linear belongs in the report.
        details=(*broken, *odd, *shown),
    )


def _bars(histogram: np.ndarray) -> str:
    counts = np.asarray(histogram, np.float64)
    top = counts.max() or 1.0
    return "".join(_BARS[int(np.ceil(count / top * (len(_BARS) - 1)))] for count in counts)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.4f} to {max(values):.4f}" if values else ""
