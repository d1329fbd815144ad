"""The faults that tests try, as the table of docs/faults.md.

python tools/fault_catalogue.py          # prints the table
python tools/fault_catalogue.py --write  # writes it into the page
"""

from __future__ import annotations

import argparse
import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "faults.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
GROUPS = {
    "files": "Files and baselines",
    "processes": "Processes",
    "servers": "Servers",
    "inputs": "Models, datasets and options",
    "secrets": "Secrets and terminals",
}
WHERE = ("tests/unit", "tests/plugin")


@dataclass
class Fault:
    """One fault as a test tries it.

    Attributes:
        group: A key of ``GROUPS``.
        tried: What is done.
        promised: What happens then.
        test: The test's file and name.
        cases: How many variants of it are run.
    """

    group: str
    tried: str
    promised: str
    test: str
    cases: int


@dataclass
class Collected:
    """A plugin of pytest that keeps what was collected.

    Attributes:
        faults: By the test's file and name, in the order of collection.
    """

    faults: dict[str, Fault] = field(default_factory=dict)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the variants of each marked test."""
        for item in session.items:
            if mark := item.get_closest_marker("fault"):
                test = item.nodeid.partition("[")[0]
                group, tried, promised = mark.args
                self.faults.setdefault(test, Fault(group, tried, promised, test, 0)).cases += 1


def collect() -> list[Fault]:
    """Every fault of the tests that need no real engine.

    Raises:
        RuntimeError: the tests cannot be collected.
    """
    collected, output = Collected(), io.StringIO()
    with contextlib.redirect_stdout(output):
        status = pytest.main(
            ["--collect-only", "-q", "-m", "fault", "-p", "no:cacheprovider", f"--rootdir={REPOSITORY}", *WHERE],
            plugins=[collected],
        )
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests cannot be collected:\n{output.getvalue()}")
    return list(collected.faults.values())


def table(faults: list[Fault]) -> str:
    """The table as Markdown, a part for each group."""
    total = sum(fault.cases for fault in faults)
    lines = [f"{total} faults in {len(faults)} tests.", ""]
    for group, title in GROUPS.items():
        lines += [f"### {title}", "", "| tried | promised | variants | test |", "|---|---|---|---|"]
        lines += [
            f"| {fault.tried} | {fault.promised} | {fault.cases} | `{fault.test.removeprefix('tests/')}` |"
            for fault in faults
            if fault.group == group
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> int:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/faults.md")
    arguments = parser.parse_args()
    text = table(collect())
    if arguments.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
