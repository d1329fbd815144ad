"""What sessions said, as Markdown: a line a test, a column a cell, with each verdict's number.

    python tools/verdict_table.py RESULT.xml...     files that `pytest --junitxml=RESULT.xml` wrote; put them in the columns' order

A test that was judged more than once shows its worst verdict, and of equals the last. Skips are shown where some cell was judged.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET

_WORST = ("fail", "invalid", "inconclusive", "pass", "error", "skip")


def read(path: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(test, cell) to (outcome, key) of one file."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for case in ET.parse(path).iter("testcase"):  # noqa: S314 - written by pytest
        facts = [(item.get("name"), item.get("value") or "") for item in case.iter("property")]
        cell = next((value for name, value in facts if name == "llminfer_cell"), "")
        name, _, inner = (case.get("name") or "").rstrip("]").partition("[")
        test = f"{name.removeprefix('test_').replace('_', ' ')} {inner.removeprefix(cell).lstrip('-')}".strip()
        verdicts = [json.loads(value) for name, value in facts if name == "llminfer_verdict"]
        if verdicts:
            worst = min(reversed(verdicts), key=lambda verdict: _WORST.index(verdict["outcome"]))
            found[test, cell] = worst["outcome"], worst["key"]
        elif case.find("skipped") is not None:
            found[test, cell] = "skip", ""
        elif (broken := next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)) is not None:
            found[test, cell] = "error", (broken.get("message") or "").splitlines()[0][:80]
    return found


def main() -> None:
    """Print the table."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for path in sys.argv[1:]:
        found |= read(path)
    cells = list(dict.fromkeys(cell for _, cell in found))
    tests = [
        test
        for test in dict.fromkeys(test for test, _ in found)
        if any(found.get((test, cell), ("skip",))[0] != "skip" for cell in cells)
    ]
    print("| test | " + " | ".join(re.sub(r"@\S+", "", cell) for cell in cells) + " |")
    print("|---" * (len(cells) + 1) + "|")
    for test in tests:
        shown = (" ".join(found.get((test, cell), ("", ""))).strip() for cell in cells)
        print(f"| {test} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
