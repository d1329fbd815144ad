"""What kind of bug makes two cache paths differ: read from where keys, values and distributions differ.

Everything is judged in the first layer that differs: those after it differ because it does.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.observations.cache_paths import CachePathComparison
    from pytest_llminfer.worker.protocol.cache_paths import CachePath

BLOCK = 16
"""Tokens of a block, in the engines that have them; theirs are this or a multiple."""
KL_LIMIT = 1e-8
"""Nats, of a position in fp32 (docs/methods.md#fp32-structure): benign paths stay four orders of magnitude below."""
_FEWEST = 4
"""Tokens that must have come from equally far away before they are taken for one piece that is in the wrong place."""
_MOST = 0.9
"""Of the tokens: with learned positions, about half of those that are one position off are nearest to their neighbour's."""
_ROUNDED = 0.6
"""Of a vector's norm: 2 bits err by 0.4 of it, another token or position by about 1."""
_EVEN = 0.1
"""Of the median error: rounding spares no token, whereas other bugs leave some nearly right."""


class Kind(StrEnum):
    """What is wrong, in the words of a verdict."""

    POSITION = "position bug"
    BLOCK = "wrong block"
    SLOT = "slot bug"
    HEADS = "swapped heads"
    PREFIX = "stale prefix"
    SCALE = "cache scale or quantization"
    TOKEN = "token or projection bug"  # noqa: S105 - no password
    WINDOW = "window bug"
    PADDING = "padding bug"
    ATTENTION = "attention bug"


ADVICE = {
    Kind.POSITION: "look at the position ids of the passes that continue: offset after a crop, a prefix or a pad",
    Kind.BLOCK: "look at the block table and slot mapping of these tokens, and at who freed or overwrote that block",
    Kind.SLOT: "look at the slot mapping and cache_position of the passes that continue",
    Kind.HEADS: "look at the order of heads where keys and values are split, stored and repeated for grouped queries",
    Kind.PREFIX: "look at how a cached prefix is found: the key must cover every token of it, and all that changes its keys",
    Kind.SCALE: "look at the dtype of the cache and at its scales: this is rounding that the cache does not claim",
    Kind.TOKEN: "look at which tokens are fed, at the projections of keys and values, and at their biases",
    Kind.WINDOW: "look at how many tokens a layer with a window keeps and sees: the last W, its own included",
    Kind.PADDING: "look at the attention mask of padded rows, and at position ids that count pads",
    Kind.ATTENTION: "look at the attention mask, scale and kernel of the passes that continue",
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What kind of bug it is.

    Attributes:
        kind: The kind, whose text a verdict shows.
        evidence: What points to it, as a sentence.
    """

    kind: Kind
    evidence: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.evidence}"


@dataclass(frozen=True, slots=True)
class Parted:
    """Where one sequence of T tokens differs; L layers, H KV heads.

    Attributes:
        found: The comparison of this sequence.
        cache_path: The candidate's cache path.
        keys: (L, H, T) bool, keys that differ by more than rounding.
        values: (L, H, T) bool, values that differ by more than rounding.
        predictions: (T,) bool, positions whose predictions differ by more than rounding.
        windows: Per layer its window in tokens, 0 for none; empty where it is not known.
        pads: Masked columns before the sequence.
        repeated: The same cache path over one repeated token, with some tokens more, which separates a wrong position from a wrong
            token; None where it was not asked.
    """

    found: CachePathComparison
    cache_path: CachePath
    keys: np.ndarray
    values: np.ndarray
    predictions: np.ndarray
    windows: Sequence[int] = ()
    pads: int = 0
    repeated: CachePathComparison | None = None


def diagnose(parted: Parted) -> Diagnosis | None:
    """The kind of bug; None where nothing parted."""
    layers = np.flatnonzero((parted.keys | parted.values).any(axis=(1, 2)))
    if not len(layers):
        where = np.flatnonzero(parted.predictions)
        return _attention(parted, where, "keys and values are equal in every layer") if len(where) else None
    layer = int(layers[0])
    where = np.flatnonzero((parted.keys | parted.values)[layer].any(axis=0))
    return _misplaced(parted, layer, where) or _by_part(parted, layer, where) or _by_origin(parted, layer, where)


def _misplaced(parted: Parted, layer: int, where: np.ndarray) -> Diagnosis | None:
    """A piece of the cache that is that of other tokens, in keys and values."""
    if not (parted.keys[layer].any() and parted.values[layer].any()):
        return None
    nearest = parted.found.nearest_position
    run, shift = _moved(where, nearest[layer][where]) if nearest is not None else (where[:0], 0)
    held = np.flatnonzero(np.isfinite(parted.found.key_error[layer]).any(axis=0))
    bounded = len(where) == where[-1] - where[0] + 1 and len(where) >= BLOCK // 2 and where[-1] < held[-1]
    # A block may have held pads, which are no token of the reference.
    if len(run) >= max(_FEWEST, (1 / 2 if bounded else _MOST) * len(where)):
        # Pads between the tokens of a block bring them nearer to those that it held; a slot bug is off by few, or to the end.
        whole = (bounded and abs(shift) >= BLOCK // 2) or shift % BLOCK == 0 or len(run) % BLOCK == 0
        told = f"in layer {layer} first, tokens {_span(run)} hold keys and values of tokens {_span(run + shift)}"
        return Diagnosis(Kind.BLOCK if whole else Kind.SLOT, f"{told}{_blocks(run)}")
    # What a pass computed rightly and the cache holds wrongly was overwritten; attention that was wrong shows in predictions.
    overwritten = parted.predictions[where].mean() < 1 / 2
    if bounded and (overwritten or _is_within_a_pass(parted, where)):
        told = f"in layer {layer} first, keys and values of tokens {_span(where)} alone are wrong"
        return Diagnosis(Kind.BLOCK, f"{told}{_blocks(where)}")
    return None


def _is_within_a_pass(parted: Parted, where: np.ndarray) -> bool:
    """Whether whole blocks begin or end amid a pass and its sound tokens, where attention to pads or by that pass does not."""
    ends = {0, *itertools.accumulate(parted.cache_path.chunks)}
    first, end = int(where[0]), int(where[-1]) + 1
    at_pads = parted.pads > 0 and first <= 1
    return len(where) % BLOCK == 0 and not at_pads and not {first, end} <= ends


def _moved(where: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, int]:
    """The tokens that came from equally far away, and how far: of the commonest distance that is not 0."""
    shifts = np.where(sources >= 0, sources - where, 0)
    distances, counts = np.unique(shifts[shifts != 0], return_counts=True)
    if not len(distances):
        return where[:0], 0
    shift = int(distances[counts.argmax()])
    return where[shifts == shift], shift


def _by_part(parted: Parted, layer: int, where: np.ndarray) -> Diagnosis | None:
    """What only some heads, or only keys or only values, give away."""
    keys, values = (side[layer] for side in (parted.keys, parted.values))
    part = "keys and values" if keys.any() and values.any() else "keys" if keys.any() else "values"
    heads = np.flatnonzero((keys | values).any(axis=1))
    others = _other_heads(parted, layer)
    # A key of another token is near to that of any head, but not everywhere to that of the same one.
    if others and (part == "keys" or len(where) >= _FEWEST):
        told = ", ".join(f"{head} as {other}" for head, other in list(others.items())[:4])
        return Diagnosis(Kind.HEADS, f"in layer {layer}, tokens {_span(where)}, keys of heads lie in another's place: {told}")
    if len(heads) < len(keys):
        return Diagnosis(
            Kind.HEADS, f"in layer {layer}, tokens {_span(where)}, {part} of heads {_list(heads)} differ, of the others none"
        )
    if part == "keys":
        return Diagnosis(Kind.POSITION, f"in layer {layer}, keys of tokens {_span(where)} differ, and values are equal")
    if part == "values":
        return Diagnosis(Kind.TOKEN, f"in layer {layer}, values of tokens {_span(where)} differ, and keys are equal")
    return None


def _other_heads(parted: Parted, layer: int) -> dict[int, int]:
    """Which head's keys lie where each head's belong: one other head for each, at most positions; empty if it is not so."""
    nearest, keys = parted.found.nearest_head, parted.keys[layer]
    if nearest is None:
        return {}
    found = {}
    for head in np.flatnonzero(keys.any(axis=1)).tolist():
        seen, counts = np.unique(nearest[layer][head][keys[head]], return_counts=True)
        if counts.max() > _MOST * counts.sum() and seen[counts.argmax()] not in {head, -1}:
            found[head] = int(seen[counts.argmax()])
    return found if len(set(found.values())) == len(found) and 2 * len(found) > keys.any(axis=1).sum() else {}


def _by_origin(parted: Parted, layer: int, where: np.ndarray) -> Diagnosis:
    """Keys and values of all heads: rounding, another position, another token, or attention in the layer before."""
    prefix, first = parted.cache_path.prefix, int(where[0])
    if layer == 0 and _is_rounding(parted, where):
        size = float(np.nanmedian(parted.found.key_error[0][parted.keys[0]]))
        return Diagnosis(Kind.SCALE, f"keys and values of tokens {_span(where)} are off by {size:.2g} of their size, evenly")
    shift = _shift(parted)
    if layer == 0 and shift:
        return Diagnosis(
            Kind.POSITION,
            f"keys and values of tokens {_span(where)} differ, and of one token repeated they are those of {shift:+d} positions",
        )
    if first < prefix and not parted.predictions[:prefix].any():
        return Diagnosis(
            Kind.PREFIX,
            f"in layer {layer}, keys and values differ from token {first} on, within the reused prefix of {prefix}, "
            "whose own predictions are equal",
        )
    if layer == 0:
        return Diagnosis(Kind.TOKEN, f"keys and values of layer 0 differ for tokens {_span(where)}, which are in no other's place")
    return _attention(parted, where, f"keys and values are equal up to layer {layer - 1}, and differ in layer {layer}")


def _is_rounding(parted: Parted, where: np.ndarray) -> bool:
    """Whether all errors of layer 0 are small and about equal, those of keys and those of values."""
    for errors in (parted.found.key_error[0][:, where], parted.found.value_error[0][:, where]):
        middle = float(np.nanmedian(errors))
        if not (np.nanmax(errors) < _ROUNDED and np.nanmin(errors) > _EVEN * middle):
            return False
    return True


def _shift(parted: Parted) -> int:
    """By how many positions one token that is repeated is off, in most of those places where it is; 0 for none."""
    again = parted.repeated
    if again is None or again.nearest_position is None:
        return 0
    positions = np.arange(again.nearest_position.shape[1])
    run, shift = _moved(positions, again.nearest_position[0])
    return shift if len(run) >= _FEWEST and 2 * len(run) > (again.nearest_position[0] != positions).sum() else 0


def _attention(parted: Parted, where: np.ndarray, seen: str) -> Diagnosis:
    """Which mask was wrong, by the first token that saw too much or too little."""
    first, cache_path = int(where[0]), parted.cache_path
    window = min((window for window in parted.windows if window), default=0)
    told = f"{seen}, from token {first} on"
    if window and first >= window and not parted.predictions[:window].any():
        kept = max((length for length, own in zip(parted.found.lengths, parted.windows, strict=False) if own), default=0)
        return Diagnosis(Kind.WINDOW, f"{told}, past the window of {window}, of which the cache keeps {kept}")
    # The first token may see copies of itself as pads, which change nothing for it.
    starts = {0, 1} if parted.pads else set()
    starts |= {cache_path.chunks[0]} if cache_path.pads_right and cache_path.chunks else set()
    if first in starts:
        after = cache_path.pads_right if cache_path.chunks else 0
        return Diagnosis(Kind.PADDING, f"{told}, in a row with pads: {parted.pads} before it, {after} after its first pass")
    return Diagnosis(Kind.ATTENTION, told)


def _span(positions: np.ndarray) -> str:
    first, last = int(positions[0]), int(positions[-1])
    if first == last:
        return str(first)
    if len(positions) == last - first + 1:
        return f"{first} to {last}"
    return f"{first} to {last} ({len(positions)} of them)"


def _blocks(run: np.ndarray) -> str:
    count = len(run) // BLOCK
    return f", {count} whole block{'s' if count > 1 else ''} of {BLOCK}" if count and len(run) % BLOCK == 0 else ""


def _list(numbers: np.ndarray) -> str:
    return ", ".join(map(str, numbers[:8].tolist())) + (", …" if len(numbers) > 8 else "")  # noqa: PLR2004 - as many as fit a line
