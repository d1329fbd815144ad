"""The summary table: cells down, families across, the verdict and its key number in each field. Pure; standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llminfer.errors import InvalidSpecError
from pytest_llminfer.report.align import GAP, align, width, writable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Rows = Mapping[str, Mapping[str, "TableEntry"]]

STATUSES = ("skip", "pass", "inconclusive", "invalid", "error", "fail")
"""From the one that says least to the one that matters most."""

_LOUD = {"invalid", "error", "fail"}
_EMPTY = "-"
_LONGEST_KEY = 28


@dataclass(frozen=True, slots=True)
class TableEntry:
    """What one family says about one cell.

    Attributes:
        status: One of ``STATUSES``.
        key: The one short number behind the status; empty without one.
        skipped: Tests of the family that did not run, beside those that the status stands for.

    Raises:
        InvalidSpecError: a status that is not one.
    """

    status: str
    key: str = ""
    skipped: int = 0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InvalidSpecError("status", self.status, STATUSES)

    def __str__(self) -> str:
        key = " ".join(self.key.split())
        key = key if len(key) <= _LONGEST_KEY else f"{key[: _LONGEST_KEY - 1].rstrip()}…"
        status = self.status.upper() if self.status in _LOUD else self.status
        return " ".join(filter(None, [status, key, f"+{self.skipped} skip" if self.skipped else ""]))


def merge(entries: Iterable[TableEntry]) -> TableEntry:
    """One entry for several tests of a family: the worst status, with the key of the first test that has it.

    A skip counts for less than a pass, so that one missing capability does not hide the number; it is counted instead.

    Raises:
        ValueError: there is no entry.
    """
    found = list(entries)
    worst = max(found, key=lambda entry: STATUSES.index(entry.status))
    if worst.status == "skip":
        return worst
    return replace(worst, skipped=sum(entry.skipped + (entry.status == "skip") for entry in found))


def render_table(rows: Rows, families: Sequence[str], columns: int, *, encoding: str = "utf-8") -> list[str]:
    """The lines of the table, columns aligned, in the order of ``rows`` and ``families``.

    columns, encoding: of the terminal. A wider table continues below, with the cells' names again; only a single column that is
    wider by itself makes longer lines, since a shortened test id is of no use. Characters that ``encoding`` does not have are
    replaced.
    """
    if not rows or not families:
        return []
    names = ["cell", *rows]
    fields = [[family, *(_field(rows[cell], family) for cell in rows)] for family in families]
    names, *fields = ([writable(text, encoding) for text in column] for column in (names, *fields))
    lines: list[str] = []
    for block in _blocks(names, fields, columns):
        lines += [""] * bool(lines)
        lines += align(list(zip(names, *block, strict=True)), rule=writable("─", encoding))
    return lines


def _field(found: Mapping[str, TableEntry], family: str) -> str:
    return str(found[family]) if family in found else _EMPTY


def _blocks(names: list[str], fields: list[list[str]], columns: int) -> list[list[list[str]]]:
    blocks: list[list[list[str]]] = [[]]
    used = start = max(map(width, names))
    for column in fields:
        size = len(GAP) + max(map(width, column))
        if blocks[-1] and used + size > columns:
            blocks.append([])
            used = start
        blocks[-1].append(column)
        used += size
    return blocks
