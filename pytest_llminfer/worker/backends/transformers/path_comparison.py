"""What two cache paths made of one sequence, reduced to numbers per position: in float64, where they were computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.worker.backends.transformers.cache_paths import Layer, Passed, walk
from pytest_llminfer.worker.protocol.cache_paths import CachePath

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

_POSITIONS = 256
"""Positions whose logits are in float64 at a time: those of a long sequence would not fit."""
_SEARCHED = 4096
"""Positions of a sequence up to which the nearest ones are looked for: their number grows with the square."""

_AS_NEAR = 1e-3
"""Of a vector's norm: below it, two distances are taken for equal."""


def compare(
    model: Any,
    sequences: Sequence[Sequence[int]],
    candidate: Mapping[str, Any],
    reference: Mapping[str, Any],
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The fields of ``CachePathComparisons``.

    Raises:
        BadInputError: a cache path that does not fit to a sequence.
        UnsupportedError: a cache path that transformers cannot go.
    """
    if not sequences:
        raise BadInputError("no sequences to compare cache paths over")
    ways = CachePath.read(reference), CachePath.read(candidate)
    found, report = [], None
    for number, ids in enumerate(sequences):
        beside = [*sequences[number + 1 :], *sequences[:number]]
        first, second = (walk(model, ids, beside, way) for way in ways)
        found.append(_one(first, second))
        report = second.report
        progress("comparing cache paths", number + 1, len(sequences))
    return {"sequences": found, "cache": report}


def _one(reference: Passed, candidate: Passed) -> dict[str, Any]:
    """The fields of ``CachePathComparison``."""
    length = len(reference.logits)
    pairs = list(zip(*_aligned(reference.layers, candidate.layers), strict=True))
    heads = max((ours.keys.shape[0] for pair in pairs for ours in pair), default=0)
    spread = [_Spread(*pair, length=length, heads=heads) for pair in pairs]
    kl, top1 = _divergence(reference.logits, candidate.logits)
    empty = torch.full((heads, length), torch.nan, dtype=torch.float64)
    return {
        "kl": kl,
        "top1": top1,
        "key_error": _stack([layer.errors("keys") for layer in spread], empty),
        "value_error": _stack([layer.errors("values") for layer in spread], empty),
        "key_ulps": _array(spread[0].ulps("keys") if spread else empty),
        "value_ulps": _array(spread[0].ulps("values") if spread else empty),
        "nearest_head": _stack([layer.nearest_head() for layer in spread], empty.to(torch.int32)),
        "nearest_position": _stack([layer.nearest_position() for layer in spread], torch.full((length,), -1, dtype=torch.int32)),
        "dtype": candidate.dtype,
        "lengths": [len(layer.positions) for layer in candidate.layers],
    }


def _aligned(first: list[Layer], second: list[Layer]) -> tuple[list[Layer], list[Layer]]:
    """Layers of both; where a cache path has no cache, layers of the other's shape that hold nothing."""
    if bool(first) == bool(second):
        return first, second
    nothing = [Layer(layer.positions[:0], layer.keys[:, :0], layer.values[:, :0]) for layer in first or second]
    return first or nothing, second or nothing


def _divergence(reference: torch.Tensor, candidate: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    kl = []
    for start in range(0, len(reference), _POSITIONS):
        wanted, given = (logits[start : start + _POSITIONS].double().log_softmax(dim=-1) for logits in (reference, candidate))
        kl.append((wanted.exp() * (wanted - given)).sum(dim=-1).clamp(min=0))
    return _array(torch.cat(kl)), _array(reference.argmax(dim=-1) == candidate.argmax(dim=-1))


class _Spread:
    """A layer of both cache paths at the positions that both hold; results spread over (heads, T), NaN elsewhere."""

    def __init__(self, reference: Layer, candidate: Layer, *, length: int, heads: int) -> None:
        shared = torch.isin(reference.positions, candidate.positions)
        same = torch.isin(candidate.positions, reference.positions)
        self._positions = reference.positions[shared]
        self._shape = (heads, length)
        self._dtype = reference.keys.dtype
        self._wanted = {name: getattr(reference, name)[:, shared].double() for name in ("keys", "values")}
        self._given = {name: getattr(candidate, name)[:, same].double() for name in ("keys", "values")}

    def _spread(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """``values`` (heads, n) or (n,) at their positions."""
        found = torch.full((*values.shape[:-1], self._shape[-1]), fill, dtype=values.dtype, device=values.device)
        found[..., self._positions] = values
        return found

    def errors(self, name: str) -> torch.Tensor:
        """(heads, T): the norm of the difference over that of the reference."""
        wanted, given = self._wanted[name], self._given[name]
        size = wanted.norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
        return self._spread((given - wanted).norm(dim=-1) / size, torch.nan)

    def ulps(self, name: str) -> torch.Tensor:
        """(heads, T): the largest difference, in units in the last place of the largest value of the two vectors.

        Of a value that the rotation made small by cancellation, the unit would be far below what its parts were rounded to.
        """
        wanted, given = self._wanted[name], self._given[name]
        stored = torch.finfo(self._dtype)
        largest = torch.maximum(wanted.abs(), given.abs()).amax(dim=-1, keepdim=True).clamp(min=stored.tiny)
        unit = torch.exp2(largest.log2().floor()) * stored.eps
        return self._spread(((given - wanted).abs() / unit).amax(dim=-1), torch.nan)

    def nearest_head(self) -> torch.Tensor:
        """(heads, T) int32: the head of the reference whose key at this position is nearest to the candidate's."""
        wanted, given = self._wanted["keys"].transpose(0, 1), self._given["keys"].transpose(0, 1)
        nearest = torch.cdist(given, wanted).argmin(dim=-1).T
        return self._spread(nearest.to(torch.int32), -1)

    def nearest_position(self) -> torch.Tensor:
        """(T,) int32: the position of the reference whose values, of all heads, are nearest to the candidate's."""
        wanted, given = (side["values"].transpose(0, 1).flatten(1) for side in (self._wanted, self._given))
        if not 0 < len(self._positions) <= _SEARCHED:
            return self._spread(torch.full_like(self._positions, -1, dtype=torch.int32), -1)
        distances = torch.cdist(given, wanted)
        best, where = distances.min(dim=-1)
        # A token that comes again has the same values in the first layer: its own position is then as near as any.
        own = distances.diagonal() <= best + _AS_NEAR * wanted.norm(dim=-1)
        nearest = torch.where(own, self._positions, self._positions[where])
        return self._spread(nearest.to(torch.int32), -1)


def _stack(layers: list[torch.Tensor], empty: torch.Tensor) -> np.ndarray:
    return _array(torch.stack(layers) if layers else empty[None][:0])


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.cpu().numpy()
    return array
