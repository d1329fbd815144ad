"""What the cells of a session show together on accuracy: p-values corrected over cells, and the nights of the ledger.

Runs in the process that the user started. Nothing heavy at the top: every pytest session of every project imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EVIDENCE = "llminfer_evidence"
ALPHA = 0.01
_HEADER = ("cell", "against", "asked", "p-value", "over tests", "e-value", "verdict")


def settle(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the nights; lines to print, of which those that begin with ERROR fail the session.

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
    for night in filter(None, (note["night"] for note in notes)):
        try:
            _write(night)
            written.append(night["path"])
        except BaselineError as error:
            lines.append(f"ERROR: {error}")
    if written:
        lines.append(f"ledger: {len(written)} night{'s' * (len(written) > 1)} added to {', '.join(sorted(set(written)))}")
    return lines


def render(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a cell: questions asked, its p-value, that over all tests of the session by Holm, and the e-value of a drop."""
    import math

    rows = [_HEADER]
    for note, adjusted in zip(notes, _adjusted(notes), strict=True):
        asked = f"{note['asked']:,} of {note['of']:,}"
        value = f"{math.exp(min(note['log_e'], 700.0)):.2g}"
        rows.append((note["cell"], note["against"], asked, f"{note['p_value']:.2g}", f"{adjusted:.2g}", value, note["outcome"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _adjusted(notes: Sequence[Mapping[str, Any]]) -> list[float]:
    from pytest_llminfer.stats.multiple import holm

    return holm([note["p_value"] for note in notes])


def _write(night: Mapping[str, Any]) -> None:
    import datetime as dt
    from pathlib import Path

    from pytest_llminfer.baselines import run_history

    date = dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    fields = {name: value for name, value in night.items() if name != "path"}
    run_history.append(Path(night["path"]), run_history.Night(date=date, **fields))
