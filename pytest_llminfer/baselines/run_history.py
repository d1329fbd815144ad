"""What single past runs showed, kept side by side with the record that they were judged by: a drift too small for one adds up.

``<baselines>/<hardware>/<model>/run_history.jsonl``: one JSON object a line, appended and never changed. A line ``{"mended":
"<what was done>"}``, added by hand once a proven drift is gone, ends the past runs above it: they stay in the file and no longer
count. With ``"entry": "<entry>"`` beside it, those of that entry alone. Standard library only.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from typing import IO, TYPE_CHECKING, Any

from pytest_llminfer.baselines.document import locked
from pytest_llminfer.errors import BaselineError

if TYPE_CHECKING:
    from pathlib import Path

FILE = "run_history.jsonl"
RIGHT, WRONG, NOT_ASKED = "1", "0", "-"
MENDED = "mended"


@dataclass(frozen=True, slots=True)
class PastRun:
    """One run of one cell.

    Attributes:
        entry: The cell, with the words of its parallelism.
        record: Fingerprint of the record that judged it, since runs judged by another record say nothing about this one.
        date: When it ended, UTC, ISO 8601.
        outcomes: One character per question in the record's order: ``RIGHT``, ``WRONG`` or ``NOT_ASKED``.
        p_value: Exact p-value of this run alone, 0 to 1.
        log_e: Natural logarithm of the e-value of this run alone.
        versions: Name to version of the engine and its packages; empty where they are not known.
    """

    entry: str
    record: str
    date: str
    outcomes: str
    p_value: float
    log_e: float
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in the file."""
        return asdict(self)


def read(path: Path, *, entry: str, record: str) -> list[PastRun]:
    """The past runs of this entry that were judged by this record, since it was last mended, oldest first; none without a file.

    Raises:
        BaselineError: the file cannot be read, or a line of it is no past run; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"run history {path} cannot be read: {error}") from None
    past_runs: list[PastRun] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        past_run = _past_run(line, path, number)
        if isinstance(past_run, PastRun):
            past_runs += [past_run] * ((past_run.entry, past_run.record) == (entry, record))
        elif past_run in ("", entry):
            past_runs = []
    return past_runs


def append(path: Path, past_run: PastRun) -> None:
    """Add one line; two sessions that end at once do not mix theirs, and a last line without an end is ended first.

    Raises:
        BaselineError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path), path.open("a+b") as file:
            line = json.dumps(past_run.to_dict(), sort_keys=True, ensure_ascii=False) + "\n"
            file.write(b"\n" * _is_unended(file) + line.encode())
    except OSError as error:
        raise BaselineError(f"run history {path} cannot be written: {error.strerror or error}") from None


def _is_unended(file: IO[bytes]) -> bool:
    """Whether the last line lacks its end: written by hand, or cut by a kill or a full disk."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _past_run(line: str, path: Path, number: int) -> PastRun | str:
    """The past run of a line, or the entry that a line calls mended (empty: all)."""
    names = {entry.name for entry in fields(PastRun)}
    try:
        read = json.loads(line)
        if MENDED in read:
            return str(read.get("entry", ""))
        return PastRun(**{name: value for name, value in read.items() if name in names})
    except (ValueError, TypeError, AttributeError):
        raise BaselineError(
            f"run history {path}, line {number} is no past run; remove that line, or restore the file from version control"
        ) from None
