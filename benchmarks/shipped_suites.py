"""What a person waits for: ``pytest suites/`` on the cells of ``make suites``.

Wall time from the start of the process to its end, loading included; and loads of an engine over cells, as the session itself
reports them. Tests that need an engine anew (three starts and stops, what has to be confirmed on fresh starts) have lines of their
own in its list and are not counted, so that a ratio above 1 means that a cell was loaded more than once for no reason.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from result import REPOSITORY, Result, finish

if TYPE_CHECKING:
    from collections.abc import Sequence

ARGUMENTS = ("--quantization=none,int8,nf4",)
"""The cells of ``make suites``."""
LIMIT_SECONDS = 180.0
LIMIT_LOADS = 1.0
LAST_CHARACTERS = 3000


def run_suites(arguments: Sequence[str]) -> tuple[float, int, int]:
    """Seconds, engine loads without those asked for, and cells of one session; a session that fails ends the benchmark."""
    command = [sys.executable, "-m", "pytest", "suites/", "-p", "no:cacheprovider", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}:\n{(done.stdout + done.stderr)[-LAST_CHARACTERS:]}")
    loads, cells = re.search(r"^engine loads: (\d+)$", done.stdout, re.MULTILINE), re.search(r"; (\d+) cells?;", done.stdout)
    if loads is None or cells is None:
        sys.exit(f"the session did not report its engine loads and cells:\n{done.stdout[-LAST_CHARACTERS:]}")
    return seconds, int(loads[1]) - done.stdout.count(", started afresh: "), int(cells[1])


def measure(repeats: int, arguments: Sequence[str] = ARGUMENTS) -> list[Result]:
    """The median wall time, and the loads of all sessions over their cells."""
    runs = [run_suites(arguments) for _ in range(repeats)]
    seconds = [run[0] for run in runs]
    loads, cells = sum(run[1] for run in runs), sum(run[2] for run in runs)
    over = f"n={repeats}" + f"; {min(seconds):.0f} to {max(seconds):.0f} s" * (repeats > 1)
    return [
        Result(f"wall time of pytest suites/ on {runs[0][2]} cells", statistics.median(seconds), " s", LIMIT_SECONDS, over),
        Result("engine loads over cells", loads / cells, "", LIMIT_LOADS, f"{loads} loads, {cells} cells"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="sessions, one after another")
    parser.add_argument("arguments", nargs="*", default=ARGUMENTS, help=f"of pytest, after --; without any: {' '.join(ARGUMENTS)}")
    given = parser.parse_args()
    finish(measure(given.repeats, given.arguments))
