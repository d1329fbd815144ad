"""The profiles of memory among the baselines as one Markdown table: a row a line, predicted beside measured, in bytes.

    python tools/memory_table.py [FOLDER] [HARDWARE]     FOLDER: baselines; HARDWARE: how its folder begins, such as nvidia-h200

A session writes them with --update-baselines (pytest_llminfer/memory_profile.py). A line outside its gate is in bold.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = ("hardware", "model", "cell", "line", "predicted", "measured", "difference", "gate")


def rows(folder: Path, hardware: str = "") -> list[tuple[str, ...]]:
    """A tuple of the columns for every line of every cell, by hardware, model and cell.

    Raises:
        SystemExit: nothing is there.
    """
    found: list[tuple[str, ...]] = []
    for file in sorted(folder.glob(f"{hardware}*/*/memory_profile.json")):
        machine, model = file.parts[-3:-1]
        for cell, entry in sorted(json.loads(file.read_text(encoding="utf-8"))["entries"].items()):
            found += [(machine, model, cell, *_columns(line)) for line in entry["expected"]["lines"]]
    if not found:
        raise SystemExit(f"no memory_profile.json under {folder}/{hardware}*")
    return found


def markdown(table: list[tuple[str, ...]]) -> list[str]:
    """The lines of the table; what a row repeats from the one above is left out."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * 4 + "---:|" * 3 + "---|"]
    above: tuple[str, ...] = ("",) * len(HEAD)
    for row in table:
        new = next((number for number in range(3) if row[number] != above[number]), 3)
        lines.append("| " + " | ".join(["" if number < new else text for number, text in enumerate(row)]) + " |")
        above = row
    return lines


def _columns(line: dict[str, Any]) -> tuple[str, ...]:
    unit = "" if line["unit"] == "bytes" else f" {line['unit']}"
    numbers = [
        "" if line[name] is None else f"{line[name]:{sign},}{unit}"
        for name, sign in (("predicted", ""), ("measured", ""), ("difference", "+"))
    ]
    gate = line["gate"] if line["within"] else f"**{line['gate']}: outside**"
    return (line["line"], *numbers, gate)


def main() -> None:
    """Print it."""
    folder, hardware = [*sys.argv[1:], *("baselines", "")[len(sys.argv) - 1 :]][:2]
    print("\n".join(markdown(rows(Path(folder), hardware))))


if __name__ == "__main__":
    main()
