"""What the cells of a session show together on accuracy: p-values corrected over cells, and the past runs of the run history.

Runs in the process that the user started. Nothing heavy at the top: every pytest session of every project imports it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EVIDENCE = "llminfer_evidence"
ANSWERS = "llminfer_answers"
"""What a cell answered: ``{"cell", "rows"}``, a row a question."""
ALPHA = 0.01
_HEADER: tuple[str, ...] = ("cell", "against", "asked", "p-value", "over tests", "e-value", "verdict")


def settle(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the past runs; lines to print, of which those that begin with ERROR fail the session.

    A test holds its own p-value to alpha divided by the number of such tests that the session's cells make, because others may
    still run. Holm's correction over those that were judged rejects no fewer: what only it rejects is failed here.
    """
    from pytest_llminfer.errors import BaselineError

    lines = [
        f"ERROR: accuracy of {note['cell']} has dropped: p = {note['p_value']:.2g}, over {len(notes)} tests {adjusted:.2g} by Holm"
        for note, adjusted in zip(notes, _adjusted(notes), strict=True)
        if adjusted <= ALPHA and note["outcome"] not in ("fail", "invalid")
    ]
    written = []
    for past_run in filter(None, (note["past_run"] for note in notes)):
        try:
            _write(past_run)
            written.append(past_run["path"])
        except BaselineError as error:
            lines.append(f"ERROR: {error}")
    if written:
        lines.append(f"run history: {len(written)} past run{'s' * (len(written) > 1)} added to {', '.join(sorted(set(written)))}")
    return lines


def rows(notes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a test of accuracy, as plain data.

    cell, against ("record" or "unquantized"), asked and of (questions), p_value, p_value_over_tests (over all tests of the session,
    by Holm), log_e (of the e-value of a drop, in nats), outcome.
    """
    kept = ("cell", "against", "asked", "of", "p_value", "log_e", "outcome")
    found = zip(notes, _adjusted(notes) if notes else (), strict=True)
    return [{**{name: note[name] for name in kept}, "p_value_over_tests": adjusted} for note, adjusted in found]


def table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The rows in words, under a heading."""
    lines = [_HEADER]
    for row in rows:
        numbers = (row["p_value"], row["p_value_over_tests"], math.exp(min(row["log_e"], 700.0)))
        asked = f"{row['asked']:,} of {row['of']:,}"
        lines.append((row["cell"], row["against"], asked, *(f"{number:.2g}" for number in numbers), row["outcome"]))
    return lines


def _adjusted(notes: Sequence[Mapping[str, Any]]) -> list[float]:
    from pytest_llminfer.stats.multiple import holm

    return holm([note["p_value"] for note in notes])


def _write(past_run: Mapping[str, Any]) -> None:
    import datetime as dt
    from pathlib import Path

    from pytest_llminfer.baselines import run_history

    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    fields = {name: value for name, value in past_run.items() if name != "path"}
    run_history.append(Path(past_run["path"]), run_history.PastRun(date=date, **fields))
