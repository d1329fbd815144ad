"""The table of time and accuracy by parallelism."""

from __future__ import annotations

from typing import Any

PARALLELISM = "llminfer_parallelism"
"""The note of a cell's line: ``{"cell", "parallelism", "questions", "seconds", "tokens_per_second", "accuracy"}``."""


def render(lines: list[dict[str, Any]]) -> list[str]:
    """The table of time and accuracy: a line a cell and parallelism, each time as a ratio to that of one GPU."""
    single = {line["cell"]: line["seconds"] for line in lines if line["parallelism"] == "single"}
    rows = [("cell", "parallelism", "questions", "seconds", "of single", "tokens/s", "accuracy")]
    for line in lines:
        base = single.get(line["cell"])
        ratio = f"{line['seconds'] / base:.2f}" if base else "-"
        rows.append(
            (
                line["cell"],
                line["parallelism"],
                str(line["questions"]),
                f"{line['seconds']:.1f}",
                ratio,
                f"{line['tokens_per_second']:,.0f}",
                f"{line['accuracy']:.1%}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
