"""What sessions said, as Markdown: a line a test, a column a cell, with each verdict's number.

    python tools/verdict_table.py results.json...     files of `pytest --llminfer-report=DIR`; put them in the columns' order

A test that was judged more than once shows its worst verdict, and of equals the last. Skips are shown where some cell was judged.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from pytest_llminfer.report.result import SessionResult, TestResult

_WORST = ("fail", "invalid", "inconclusive", "pass")


def read(path: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(test, cell) to (outcome, key) of one file."""
    result = SessionResult.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    return {(_name(test), test.cell): _said(test) for test in result.tests}


def _name(test: TestResult) -> str:
    name, _, inner = test.node_id.rpartition("::")[2].rstrip("]").partition("[")
    return f"{name.removeprefix('test_').replace('_', ' ')} {inner.removeprefix(test.cell).lstrip('-')}".strip()


def _said(test: TestResult) -> tuple[str, str]:
    if test.verdicts:
        worst = min(reversed(test.verdicts), key=lambda verdict: _WORST.index(verdict.outcome.value))
        return worst.outcome.value, worst.key
    return ("error", test.reason.partition("\n")[0][:80]) if test.failed else (test.outcome, "")


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
