"""The table of time and accuracy by parallelism."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PARALLELISM = "llminfer_parallelism"
"""The note of a cell's line: ``{"cell", "parallelism", "questions", "seconds", "tokens_per_second", "accuracy"}``."""


def rows(notes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a cell and parallelism, as plain data: the note, and ``of_single``, its seconds as a share of those on one GPU (None:
    not asked). Empty where no cell is split.
    """
    if all(note["parallelism"] == "single" for note in notes):
        return []
    single = {note["cell"]: note["seconds"] for note in notes if note["parallelism"] == "single"}
    return [{**note, "of_single": note["seconds"] / base if (base := single.get(note["cell"])) else None} for note in notes]


def table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The rows as aligned lines, under a heading."""
    heading = ("cell", "parallelism", "questions", "seconds", "of single", "tokens/s", "accuracy")
    return [
        heading,
        *(
            (
                row["cell"],
                row["parallelism"],
                str(row["questions"]),
                f"{row['seconds']:.1f}",
                "-" if row["of_single"] is None else f"{row['of_single']:.2f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['accuracy']:.1%}",
            )
            for row in rows
        ),
    ]
