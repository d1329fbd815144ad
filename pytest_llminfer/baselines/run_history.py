"""What single nights showed, kept side by side with the record that they were judged by: a drift too small for one adds up.

``<baselines>/<hardware>/<model>/ledger.jsonl``: one JSON object a line, appended and never changed. A line ``{"mended": "<what was
done>"}``, added by hand once a proven drift is gone, ends the nights above it: they stay in the file and no longer count. With
``"entry": "<entry>"`` beside it, those of that entry alone. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pytest_llminfer.baselines.document import locked
from pytest_llminfer.errors import BaselineError

if TYPE_CHECKING:
    from pathlib import Path

FILE = "ledger.jsonl"
RIGHT, WRONG, NOT_ASKED = "1", "0", "-"
MENDED = "mended"


@dataclass(frozen=True, slots=True)
class Night:
    """One run of one cell.

    entry: of the record, with the words of the cell's spread. record: the record's fingerprint, since nights judged by another
    record say nothing about this one. outcomes: a character a question in the record's order (``RIGHT``, ``WRONG``,
    ``NOT_ASKED``). p_value, log_e: of this night alone; the e-value's natural logarithm. date: UTC, ISO 8601.
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


def read(path: Path, *, entry: str, record: str) -> list[Night]:
    """The nights of this entry that were judged by this record, since it was last mended, oldest first; none without a file.

    Raises:
        BaselineError: the file cannot be read, or a line of it is no night; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"ledger {path} cannot be read: {error}") from None
    nights: list[Night] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        night = _night(line, path, number)
        if isinstance(night, Night):
            nights += [night] * ((night.entry, night.record) == (entry, record))
        elif night in ("", entry):
            nights = []
    return nights


def append(path: Path, night: Night) -> None:
    """Add one line; two sessions that end at once do not mix theirs.

    Raises:
        BaselineError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(night.to_dict(), sort_keys=True, ensure_ascii=False) + "\n")
    except OSError as error:
        raise BaselineError(f"ledger {path} cannot be written: {error.strerror or error}") from None


def _night(line: str, path: Path, number: int) -> Night | str:
    """The night of a line, or the entry that a line calls mended (empty: all)."""
    names = {entry.name for entry in fields(Night)}
    try:
        read = json.loads(line)
        if MENDED in read:
            return str(read.get("entry", ""))
        return Night(**{name: value for name, value in read.items() if name in names})
    except (ValueError, TypeError, AttributeError):
        raise BaselineError(
            f"ledger {path}, line {number} is no record of a night; remove that line, or restore the file from version control"
        ) from None
