"""docs/faults.md lists the faults that tests try, and no other."""

from __future__ import annotations

import re
import subprocess
import sys

import fault_catalogue
import pytest

from tests.support.paths import REPOSITORY


@pytest.fixture(scope="module")
def table() -> str:
    """As the tool prints it, in a process of its own: collecting imports every test anew."""
    command = [sys.executable, str(REPOSITORY / "tools" / "fault_catalogue.py")]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.strip()


def test_the_page_is_what_the_tests_are(table: str) -> None:
    """Otherwise: python tools/fault_catalogue.py --write."""
    shown = fault_catalogue.PAGE.read_text().partition(fault_catalogue.BEGIN)[2].partition(fault_catalogue.END)[0]
    assert shown.strip() == table


def test_every_fault_has_a_group_and_says_what_is_promised(table: str) -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \| (\d+) \| `(.+)` \|$", table, re.MULTILINE)
    total, tests = map(int, re.findall(r"\d+", table.partition("\n")[0]))
    # A fault of a group that is none would be in no part of the table.
    assert (sum(int(cases) for _, _, cases, _ in rows), len(rows)) == (total, tests)
    assert total >= 120
