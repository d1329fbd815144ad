"""Two cache paths through one KV cache: the same distributions, keys and values; and the kind of bug where they differ."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.families.kv_equivalence.diagnosis import ADVICE, KL_LIMIT, Diagnosis, Parted, diagnose
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.models.cut import CacheSizes
    from pytest_llminfer.observations.cache_paths import CachePathComparison, CachePathComparisons
    from pytest_llminfer.worker.protocol.cache_paths import CachePath

UNIT_ROUNDOFF = 6.0e-8
"""Of fp32 (docs/methods.md#rounding-limits)."""
GROWTH = 40
"""Relative errors of keys and values in layer l are at most GROWTH u sqrt(l + 1) in fp32 (docs/methods.md#rounding-limits)."""
ULPS = 1
"""Of keys and values of the first layer, by any benign cache path (docs/methods.md#first-layer)."""
LIMIT = "of its limit"
_ADVICE = "the first line says by which cache path the two differ, and by how much"


@dataclass(frozen=True, slots=True)
class Compared:
    """What an engine answered to one request.

    Attributes:
        cache_path: The candidate's cache path.
        found: Its comparison with the reference, by sequence.
        repeated: The comparison of :func:`repeated`, made once ``found`` had failed; None where it was not.
    """

    cache_path: CachePath
    found: CachePathComparisons
    repeated: CachePathComparisons | None = None

    def pads_before(self, number: int) -> int:
        """Masked columns before the sequence of this number: those requested, and those that even out the rows of its batch."""
        lengths = [len(one.kl) for one in self.found.sequences]
        others = [*lengths[number + 1 :], *lengths[:number]]
        rows = itertools.islice(itertools.cycle(others), self.cache_path.batch - 1)
        uneven = (
            0 if self.cache_path.pads_right and not self.cache_path.pads_left else max([*rows, lengths[number]]) - lengths[number]
        )
        return uneven + self.cache_path.pads_left

    @property
    def columns(self) -> int:
        """Of the candidate's cache for the last sequence: tokens and pads of its longest row."""
        own, *others = reversed([len(one.kl) for one in self.found.sequences])
        rows = [own, *itertools.islice(itertools.cycle(reversed(others)), self.cache_path.batch - 1)]
        return max(rows) + self.cache_path.pads_left + self.cache_path.pads_right

    @property
    def slots(self) -> int:
        """Of a static cache for the last sequence: room for it, for the longest other one, for pads, and what it has to spare."""
        own, *others = reversed([len(one.kl) for one in self.found.sequences])
        return own + max(others, default=0) + self.cache_path.pads_left + self.cache_path.pads_right + self.cache_path.spare

    def __str__(self) -> str:
        tokens = ", ".join(str(len(one.kl)) for one in self.found.sequences)
        return f"sequences of {tokens} tokens by {told(self.cache_path)}"


def repeated(sequences: Sequence[Sequence[int]], cache_path: CachePath) -> tuple[list[list[int]], CachePath]:
    """The same request over one repeated token, which separates a wrong position from a wrong token.

    Sequences get some tokens more, so that there are positions beyond the end which a token may have got by mistake.
    """
    longer = replace(cache_path, chunks=(*cache_path.chunks, _MORE)) if cache_path.chunks else cache_path
    return [[ids[0]] * (len(ids) + _MORE) for ids in sequences], longer


_MORE = 16


def told(cache_path: CachePath) -> str:
    """A cache path as a phrase: what it has beyond a single pass over a dynamic cache."""
    plain = type(cache_path)()
    parts = [
        f"{name}={value}" for name, value in cache_path.to_dict().items() if name != "chunks" and value != getattr(plain, name)
    ]
    if cache_path.chunks:
        shown = ", ".join(map(str, cache_path.chunks[:6]))
        parts.insert(0, f"chunks of {shown}{f', … ({len(cache_path.chunks)} passes)' if len(cache_path.chunks) > 6 else ''}")  # noqa: PLR2004
    return ", ".join(parts) or "one pass"


def check_cache_paths(*, compared: Sequence[Compared], sizes: CacheSizes | None, claim: str) -> Verdict:
    """Whether every cache path gives what its reference gives, in fp32: a mean KL of at most 1e-8 nats and the same likeliest
    tokens.

    Keys and values differ by at most 40 u sqrt(l + 1) of their size in layer l (docs/methods.md#rounding-limits), at each position
    that both cache paths keep. Of what fails, the first line names the kind of bug (``diagnosis``). sizes: of the model, None
    where not known.
    """
    sequences = [(one, number, entry) for entry in compared for number, one in enumerate(entry.found.sequences)]
    wrong = {one.dtype for one, _, _ in sequences} - {"fp32", ""}
    failed = [(one, number, entry) for one, number, entry in sequences if _differs(one)]
    lines: list[str] = []
    kinds: list[Diagnosis] = []
    for one, number, entry in failed:
        keys, values = one.key_error > _limits(one), one.value_error > _limits(one)
        found = diagnose(parted_at(one, number, entry, sizes, keys=keys, values=values))
        kinds += [found] if found else []
        lines += [*([str(found)] if found else []), f"{entry}, the one numbered {number}: {_size(one)}"]
    positions = sum(len(one.kl) for one, _, _ in sequences)
    if not positions:
        lines.insert(0, "nothing was compared")
    largest = max((float(one.kl.mean()) for one, _, _ in sequences), default=0.0)
    outcome = Outcome.INVALID if wrong else Outcome.FAIL if lines else Outcome.PASS
    return Verdict(
        outcome=outcome,
        claim=claim,
        key=str(kinds[0].kind) if kinds else f"KL {largest:.1g}",
        measurements=(
            Measurement("largest mean KL of a sequence", largest, "nats", positions),
            Measurement("sequences that differ", len(failed), "sequences", len(sequences)),
            Measurement("largest error of a key", _largest([one.key_error / _limits(one) for one, _, _ in sequences]), LIMIT),
            Measurement("largest error of a value", _largest([one.value_error / _limits(one) for one, _, _ in sequences]), LIMIT),
        ),
        threshold=f"mean KL of every sequence <= {KL_LIMIT:g} nats, the same likeliest token at every position, "
        f"keys and values within {GROWTH} u sqrt(layer + 1) = {GROWTH * UNIT_ROUNDOFF:.2g} of their norm in layer 0",
        threshold_source="docs/methods.md#fp32-structure and docs/methods.md#rounding-limits",
        smallest_detectable="one key or value of one head, at a position that both ways keep, off by that",
        advice=f"compare in fp32, not {', '.join(sorted(wrong))}" if wrong else ADVICE[kinds[0].kind] if kinds else _ADVICE,
        details=first_offenders(lines),
    )


def check_first_layer(*, compared: Sequence[Compared], claim: str) -> Verdict:
    """Whether keys and values of the first layer are equal to the last place by every cache path, in the dtype that is stored.

    They depend on token and position alone, so that no error has grown: a difference in keys alone is one of positions, one in
    both of slots, tokens or projections (docs/methods.md#first-layer).
    """
    sequences = [(one, number, entry) for entry in compared for number, one in enumerate(entry.found.sequences)]
    lines: list[str] = []
    kinds: list[Diagnosis] = []
    held = 0
    for one, number, entry in sequences:
        keys, values = one.key_ulps > ULPS, one.value_ulps > ULPS
        held += int(np.isfinite(one.key_ulps).any(axis=0).sum())
        if keys.any() or values.any():
            found = diagnose(parted_at(_first(one), number, entry, None, keys=keys[None], values=values[None], quiet=True))
            kinds += [found] if found else []
            size = f"keys by up to {_largest([one.key_ulps]):,.3g} ulp, values by up to {_largest([one.value_ulps]):,.3g}"
            lines += [*([str(found)] if found else []), f"{entry}, the one numbered {number}: {size}"]
    if not held:
        lines.insert(0, "nothing was compared: no position is kept by both cache paths")
    dtypes = sorted({one.dtype for one, _, _ in sequences if one.dtype})
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=str(kinds[0].kind) if kinds else f"{_largest([one.key_ulps for one, _, _ in sequences]):.2g} ulp",
        measurements=(
            Measurement("largest difference of a key", _largest([one.key_ulps for one, _, _ in sequences]), "ulp", held),
            Measurement("largest difference of a value", _largest([one.value_ulps for one, _, _ in sequences]), "ulp", held),
            Measurement("cache_paths", len(compared), "cache_paths"),
        ),
        threshold=f"{ULPS} ulp of {', '.join(dtypes)}, at the size of the largest component of a key",
        threshold_source="docs/methods.md#first-layer: bit-equal in bf16 and fp16 for every benign cache path measured",
        smallest_detectable="one component off by two ulp; of later layers, nothing",
        advice=ADVICE[kinds[0].kind] if kinds else "give prompts, and cache paths with a cache",
        details=first_offenders(lines),
    )


def _differs(one: CachePathComparison) -> bool:
    errors = ((side > _limits(one)).any() for side in (one.key_error, one.value_error))
    return not (one.kl.mean() <= KL_LIMIT and one.top1.all()) or any(errors)


def _limits(one: CachePathComparison) -> np.ndarray:
    """Per layer (L, 1, 1)."""
    layers = np.arange(one.key_error.shape[0])
    limits: np.ndarray = (GROWTH * UNIT_ROUNDOFF * np.sqrt(layers + 1))[:, None, None]
    return limits


def parted_at(
    one: CachePathComparison,
    number: int,
    entry: Compared,
    sizes: CacheSizes | None,
    *,
    keys: np.ndarray,
    values: np.ndarray,
    quiet: bool = False,
) -> Parted:
    """What :func:`diagnose` reads of one sequence; ``quiet``: its predictions are not looked at."""
    again = entry.repeated.sequences if entry.repeated else ()
    return Parted(
        found=one,
        cache_path=entry.cache_path,
        keys=keys,
        values=values,
        predictions=np.zeros(one.kl.shape, bool) if quiet else one.kl > KL_LIMIT,
        windows=sizes.windows if sizes else (),
        pads=entry.pads_before(number),
        repeated=again[number] if number < len(again) else None,
    )


def _first(one: CachePathComparison) -> CachePathComparison:
    """The first layer alone."""
    heads, positions = one.nearest_head, one.nearest_position
    return type(one)(
        kl=one.kl,
        top1=one.top1,
        key_error=one.key_error[:1],
        value_error=one.value_error[:1],
        key_ulps=one.key_ulps,
        value_ulps=one.value_ulps,
        dtype=one.dtype,
        lengths=one.lengths[:1],
        nearest_head=None if heads is None else heads[:1],
        nearest_position=None if positions is None else positions[:1],
    )


def _size(one: CachePathComparison) -> str:
    other = np.flatnonzero(~one.top1)
    text = f"mean KL {one.kl.mean():.3g} nats, largest {one.kl.max():.3g} at token {int(one.kl.argmax())}"
    return f"{text}, {len(other)} other likeliest tokens" if len(other) else text


def _largest(errors: Sequence[np.ndarray]) -> float:
    return max((float(np.nanmax(entry)) for entry in errors if np.isfinite(entry).any()), default=0.0)
