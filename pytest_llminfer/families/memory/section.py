"""The table of memory by category, predicted and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEMORY = "llminfer_memory"
"""The note of a cell's memory profile: ``{"cell", "lines"}``, a mapping a line."""


def render(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of all cells: a row a line, and a mark on what is outside its gate."""
    rows = [("cell", "memory", "predicted", "measured", "difference", "gate")]
    for note in notes:
        for number, line in enumerate(note["lines"]):
            unit = "" if line["unit"] == "bytes" else f" {line['unit']}"
            rows.append(
                (
                    note["cell"] if not number else "",
                    line["line"],
                    _number(line["predicted"], unit),
                    _number(line["measured"], unit),
                    _number(line["difference"], unit, signed=True),
                    line["gate"] + " OUTSIDE" * (not line["within"]),
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _number(value: int | None, unit: str, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return (f"{value:+,}" if signed else f"{value:,}") + unit
