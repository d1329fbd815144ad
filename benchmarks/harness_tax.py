"""What asking questions through the plugin costs over a bare loop: wall time of one over the other.

Both sides answer the same bundled GSM8K-like questions with the bundled reference model, transformers in bfloat16 on the CPU,
in this interpreter, with the same number of threads and the same budget of tokens a batch. Measured on each side: from questions
to graded answers, that is, wording and encoding the prompts, batching, generation, decoding, grading; through the plugin also
the way to the worker process and back. Loading is not measured: each side is one process that loads once and then
answers on request, so that the two runs of a pair lie side by side in time. The order alternates from pair to pair. The first
pair warms up and is not counted. Every run must give the same token ids and grades on both sides, else there is no number.

``--control`` measures a second bare loop in place of the plugin: the ratio then tells the noise of the method.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from result import Result, finish
from sides import THREADS, Side, compare
from through_plugin import pytest_command

LIMIT = 1.05
QUESTIONS, PAIRS = 300, 5

BARE = (sys.executable, str(Path(__file__).resolve().with_name("bare_loop.py")))


def measure(questions: int, pairs: int, threads: int, *, control: bool = False) -> list[Result]:
    """The median of the pairs' ratios, and the bare loop's own seconds, which only give the scale."""
    with tempfile.TemporaryDirectory() as name:
        folders = Path(name) / "plugin", Path(name) / "bare"
        for folder in folders:
            folder.mkdir()
        plugin = Side(pytest_command(folders[0], "test_answers_on_request", "--engine=transformers"), folders[0], threads)
        bare = Side(BARE, folders[1], threads)
        request = {**plugin.ready, "questions": questions}
        if control:
            plugin.close()
            plugin = Side(BARE, folders[0], threads)
        found = compare(plugin, bare, request, pairs)
        plugin.close()
        bare.close()
    what = "a second bare loop over the first" if control else "through the plugin over a bare loop"
    what += f", {threads} threads, identical answers"
    return [
        Result(f"{questions} questions {what}", statistics.median(found.ratios), "", LIMIT, found.spread),
        Result("seconds of the bare loop", found.bare_seconds, " s", None, f"n={pairs}"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--threads", type=int, default=THREADS, help="OMP_NUM_THREADS")
    parser.add_argument("--control", action="store_true")
    given = parser.parse_args()
    finish(measure(given.questions, given.pairs, given.threads, control=given.control))
