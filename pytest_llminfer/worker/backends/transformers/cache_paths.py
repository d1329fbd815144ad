"""One sequence through a model by a given cache path: which tokens are fed in which order, beside which others, over which
cache.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.worker.backends.transformers import path_cache
from pytest_llminfer.worker.backends.transformers.path_walk import Walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.worker.protocol.cache_paths import CachePath

_TAIL = 8
"""Further tokens of the sequence that fills a prefix for another one."""
_NO_LIMIT = 1 << 30


def segments(path: CachePath, length: int) -> list[int]:
    """Lengths of the passes over ``length`` tokens, with a boundary where something is cropped or reused.

    Raises:
        BadInputError: the parts of the cache path do not fit together, or not to this sequence.
    """
    chunks = list(path.chunks) or [length]
    if min(chunks) < 1 or sum(chunks) != length:
        raise BadInputError(f"chunks of {sum(chunks)} tokens, each at least 1, do not make up a sequence of {length}")
    if min(path.pads_left, path.pads_right, path.crop, path.crop_extra, path.prefix, path.spare) < 0:
        raise BadInputError("a cache path has no negative numbers")
    if min(path.batch, path.beams, path.residual) < 1:
        raise BadInputError("batch, beams and residual are at least 1")
    if not path.prefix < length or path.crop > length or 0 < path.crop < path.prefix:
        raise BadInputError(f"prefix ({path.prefix}) < {length} tokens, and crop ({path.crop}) between the two, are possible")
    if bool(path.crop) != bool(path.crop_extra):
        raise BadInputError("crop (where) and crop_extra (how many tokens) belong together")
    ends = {*itertools.accumulate(chunks), *([path.crop] if path.crop else [])}
    ends = {end for end in ends if end > path.prefix} | ({path.prefix} if path.prefix else set())
    return [end - start for start, end in itertools.pairwise([0, *sorted(ends)])]


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer of the cache holds of one sequence: n positions, H KV heads.

    Attributes:
        positions: (n,) positions in the sequence, in rising order.
        keys: (H, n, head_dim) keys at those positions.
        values: (H, n, head_dim) values at those positions.
    """

    positions: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class Passed:
    """What a sequence of T tokens left.

    Attributes:
        logits: (T, vocabulary) in the model's dtype.
        layers: Its part of the cache by layer; empty for a cache path without one.
        dtype: What the cache stores, in the words of a cell, or ``int2`` and ``int4``; empty without a cache.
        report: The fields of ``CachedTensors``; None without a cache.
    """

    logits: torch.Tensor
    layers: list[Layer]
    dtype: str
    report: dict[str, Any] | None


def positions(text: Any) -> int:
    """How many positions a model of this configuration has."""
    return getattr(text, "max_position_embeddings", None) or _NO_LIMIT


def others(ids: Sequence[int], vocabulary: int) -> list[int]:
    """Tokens each of which differs from the one at its place."""
    return [(token + 1 + vocabulary // 2) % vocabulary for token in ids]


def walk(model: Any, ids: Sequence[int], beside: Sequence[Sequence[int]], cache_path: CachePath) -> Passed:
    """Send ``ids`` through the model. beside: other sequences of the request, which its neighbours in a batch are taken from.

    Raises:
        UnsupportedError: transformers cannot go this way with this cache or this model.
    """
    text = model.config.get_text_config()
    passes = segments(cache_path, len(ids))
    _check_positions(text, len(ids), cache_path)
    columns = len(ids) + cache_path.pads_left + cache_path.pads_right + max(map(len, beside), default=0)
    asked = {"bits": cache_path.cache_bits, "residual": cache_path.residual, "spare": cache_path.spare}
    cache = path_cache.make(model.config, cache_path.cache, columns=columns, **asked)
    own = cache_path.batch // 2
    rows = [
        list(row) for row in itertools.islice(itertools.cycle(beside or [others(ids[::-1], text.vocab_size)]), cache_path.batch - 1)
    ]
    rows.insert(own, list(ids))
    return _PathCase(model, cache, cache_path, rows, own, passes, text.vocab_size).run()


class _PathCase:
    """The steps of a cache path, in their order. Rows of a batch come in groups of ``beams``; one row of one group is read."""

    def __init__(
        self, model: Any, cache: Any, cache_path: CachePath, rows: list[list[int]], own: int, segments: list[int], vocabulary: int
    ) -> None:
        self._cache_path, self._segments, self._vocabulary = cache_path, segments, vocabulary
        self._walk = Walk(model, cache)
        self._ids, self._group = rows[own], own
        later = len(self._ids) - segments[0]
        self._first = [row[: max(1, len(row) - later)] for row in rows]
        self._first[own] = self._ids[: segments[0]]
        following = [itertools.cycle(row) for row in rows]
        self._rest = [list(itertools.islice(tokens, later)) for tokens in following]
        self._rest[own] = self._ids[segments[0] :]
        self._early = cache_path.beams > 1 and (cache is None or not path_cache.can_branch(cache))
        self._branches = cache_path.beams if self._early else 1
        self._beam = 0

    def run(self) -> Passed:
        cache_path, walk = self._cache_path, self._walk
        pieces = [self._begin()]
        if cache_path.beams > 1:
            if not self._early:
                walk.branch(cache_path.beams)
            self._branches, self._beam = cache_path.beams, cache_path.beams - 1
        done = self._segments[0]
        self._after(done)
        for length in self._segments[1:]:
            logits = walk.feed(self._tokens(done - self._segments[0], length), range(done, done + length))
            pieces.append(logits[self._row])
            done += length
            self._after(done)
        return self._end(torch.cat(pieces))

    @property
    def _row(self) -> int:
        return self._group * self._branches + self._beam

    def _tokens(self, start: int, length: int) -> list[list[int]]:
        """What every row is fed next; the other beams of a group get other tokens than the one that is read."""
        given = []
        for rest in self._rest:
            tokens = rest[start : start + length]
            given += [tokens if beam == self._beam else others(tokens, self._vocabulary) for beam in range(self._branches)]
        return given

    def _begin(self) -> torch.Tensor:
        """The first pass: pads, first tokens, pads; of a reused prefix also those of the sequence that filled it."""
        cache_path, walk = self._cache_path, self._walk
        width = max(map(len, self._first))
        rows, real = [], []
        for first in self._first:
            space = width - len(first)
            left, right = (0, space) if cache_path.pads_right and not cache_path.pads_left else (space, 0)
            left, right = left + cache_path.pads_left, right + cache_path.pads_right
            # A pad is a token like any other: only the mask marks it as a pad.
            rows += [[first[0]] * left + first + [first[-1]] * right] * self._branches
            real += [[0] * left + [1] * len(first) + [0] * right] * self._branches
        own = real[self._group * self._branches]
        at = own.index(1)
        count = len(self._first[self._group])
        columns = [-1] * at + list(range(count)) + [-1] * (len(own) - at - count)
        self._check_hole(len(own) - at - count)
        if (
            cache_path.prefix
            and (walk.cache is None or not hasattr(walk.cache.layers[0], "_quantize"))
            and cache_path.cache != "static"
        ):
            tail = others(self._ids[cache_path.prefix : cache_path.prefix + _TAIL], self._vocabulary)
            logits = walk.feed_and_crop(
                [row + tail for row in rows],
                len(tail),
                columns=columns + [-1] * len(tail),
                real=[row + [1] * len(tail) for row in real],
            )
        else:
            logits = walk.feed(rows, columns, real)
        if cache_path.prefix:
            walk.cache = path_cache.duplicate(walk.cache)
        return logits[self._row, at : at + count]

    def _check_hole(self, pads: int) -> None:
        """Refuse pads between the tokens of a sequence that reaches over a window: transformers counts it in columns."""
        windows = [window for window in path_cache.windows(path_cache.make(self._walk.config, "dynamic")) if window]
        if pads and len(self._segments) > 1 and windows and len(self._ids) + pads > min(windows):
            raise UnsupportedError(
                f"transformers counts a window ({min(windows)}) in columns, pads included: with {pads} pads between its tokens "
                f"a sequence of {len(self._ids)} gets another attention than by prefill",
                "draw pads that stand before the sequence, or a model without a window",
            )

    def _after(self, done: int) -> None:
        cache_path, walk = self._cache_path, self._walk
        if cache_path.crop == done and cache_path.crop_extra:
            extra = list(itertools.islice(itertools.cycle(others(self._ids, self._vocabulary)), cache_path.crop_extra))
            walk.feed_and_crop(
                [extra] * (len(self._first) * self._branches), cache_path.crop_extra, columns=[-1] * cache_path.crop_extra
            )
        if cache_path.beams > 1:
            walk.reorder(cache_path.beams)
            self._beam = (self._beam - 1) % cache_path.beams

    def _end(self, logits: torch.Tensor) -> Passed:
        walk = self._walk
        if walk.cache is None:
            return Passed(logits, [], "", None)
        report, dtype, row = path_cache.report(walk.cache), path_cache.dtype_of(walk.cache), self._row
        if self._cache_path.beams > 1 and not self._early:
            walk.cache.batch_select_indices(torch.tensor([row], device=logits.device))
            row = 0
        columns = torch.tensor(walk.columns, device=logits.device)
        found = []
        for held in path_cache.read(walk.cache, len(walk.columns)):
            newest = columns[len(columns) - held.keys.shape[-2] :]
            kept = newest >= 0
            found.append(Layer(newest[kept], held.keys[row][:, kept], held.values[row][:, kept]))
        return Passed(logits, found, dtype, report)


def _check_positions(text: Any, length: int, cache_path: CachePath) -> None:
    limit = positions(text)
    needed = max(length, cache_path.crop + cache_path.crop_extra, cache_path.prefix + (_TAIL if cache_path.prefix else 0))
    if needed > limit:
        raise BadInputError(f"the cache path needs {needed} positions, and the model has {limit}")
