"""The table of memory by category, predicted and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MEMORY = "llminfer_memory"
"""The note of a cell's memory profile: ``{"cell", "lines"}``, a mapping a line."""


def rows(notes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a cell and line of its profile, as plain data: ``cell`` and the fields of ``ProfileLine.to_dict``."""
    return [{"cell": note["cell"], **line} for note in notes for line in note["lines"]]


def table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The rows as aligned lines, under a heading; a cell is named once, and what is outside its gate is marked."""
    lines: list[tuple[str, ...]] = [("cell", "memory", "predicted", "measured", "difference", "gate")]
    above = None
    for row in rows:
        unit = "" if row["unit"] == "bytes" else f" {row['unit']}"
        lines.append(
            (
                row["cell"] if row["cell"] != above else "",
                row["line"],
                _number(row["predicted"], unit),
                _number(row["measured"], unit),
                _number(row["difference"], unit, signed=True),
                row["gate"] + " OUTSIDE" * (not row["within"]),
            )
        )
        above = row["cell"]
    return lines


def _number(value: int | None, unit: str, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return (f"{value:+,}" if signed else f"{value:,}") + unit
