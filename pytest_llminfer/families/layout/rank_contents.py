"""What ranks hold, beside how they store it: copies that differ, and parts that two ranks hold alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llminfer.families.layout.differences import grouped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.observations.layout import Layout, Parameter
    from pytest_llminfer.predict.layout import StoredWeight

_TELLING = ("weight", "weight_packed", "qweight", "weight_scale", "scales")
"""Tensors of a packed linear that are equal on two ranks only if the ranks hold the same."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Result of comparing what several ranks hold.

    Attributes:
        lines: The differences found, one line each; empty for none.
        compared: Weights whose content at least two ranks have reported.
        all: Weights that several ranks hold.
    """

    lines: tuple[str, ...]
    compared: int
    all: int

    @property
    def power(self) -> str:
        """What could have been seen."""
        if not self.all:
            return "exact in storage"
        seen = f"equal contents of {self.compared} of {self.all} weights that several ranks hold"
        unseen = "; of the others no bytes were seen" if self.compared < self.all else ""
        return f"exact in storage; {seen}{unseen}; not which rank holds which part, nor a slice that is neither"


def compare_contents(
    *,
    ranks: Sequence[Layout],
    expected: Mapping[tuple[int, int], Sequence[StoredWeight]],
    whole: Mapping[str, Parameter],
) -> Contents:
    """Compare the hashes of what the tensor ranks of each stage hold: copies are equal, parts of a matrix are not.

    Two ranks with the same part are stored as they should be, and only the numbers show it. Left out are split tensors of one
    dimension (biases of zero are equal), and of quantized weights all but the weight and its scales (zeros and shapes are equal,
    corrections are each rank's own). What is not stored as it should be is not compared.
    """
    reasons: list[tuple[str, str]] = []
    compared = judged = 0
    for stage in sorted({stage for stage, _ in expected}):
        parts = {
            rank: {weight.parameter.name: weight for weight in weights} for (of, rank), weights in expected.items() if of == stage
        }
        found = {rank.tp_rank: {each.name: each for each in rank.parameters} for rank in ranks if rank.pp_rank == stage}
        for name, weight in parts[0].items() if len(parts) > 1 else ():
            copied = weight.parameter.shape == whole[name].shape
            if _says_nothing(weight) or (not copied and len(weight.parameter.shape) == 1):
                continue
            judged += 1
            by_content: dict[str, list[int]] = {}
            for rank in sorted(found.keys() & parts.keys()):
                parameter = found[rank].get(name)
                if parameter is not None and parameter.content and _stored_alike(parameter, parts[rank][name].parameter):
                    by_content.setdefault(parameter.content, []).append(rank)
            compared += sum(map(len, by_content.values())) > 1
            reasons += _reasons(name, by_content, copied=copied)
    return Contents(tuple(grouped(reasons)), compared, judged)


def _says_nothing(weight: StoredWeight) -> bool:
    """Whether a tensor is a packed linear's zeros, shape or correction, and neither its weight nor its scales."""
    return bool(weight.module) and weight.parameter.name.rpartition(".")[2] not in _TELLING


def _stored_alike(parameter: Parameter, expected: Parameter) -> bool:
    return (parameter.dtype, parameter.stored_shape) == (expected.dtype, expected.stored_shape)


def _reasons(name: str, by_content: Mapping[str, Sequence[int]], *, copied: bool) -> list[tuple[str, str]]:
    if copied and len(by_content) > 1:
        groups = " than ".join(_ranks(ranks) for ranks in by_content.values())
        return [(name, f"held whole by every rank, and other numbers on {groups}")]
    if copied:
        return []
    return [(name, f"the same part on {_ranks(ranks)}: their bytes are equal") for ranks in by_content.values() if len(ranks) > 1]


def _ranks(ranks: Sequence[int]) -> str:
    return "tp rank " + " and tp rank ".join(map(str, ranks))
