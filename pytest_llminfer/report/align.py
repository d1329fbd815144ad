"""Columns of text, aligned as a terminal shows them. Pure; standard library only."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from pytest_llminfer.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = "  "
_ASCII = dict(zip("×µμ−–—…±≤≥─", ("x", "u", "u", "-", "-", "-", "...", "+-", "<=", ">=", "-"), strict=True))  # noqa: RUF001


def align(rows: Sequence[Sequence[str]], *, rule: str = "") -> list[str]:
    """One line a row, each column as wide as its widest field, without blanks at the end.

    rule: the character of a line under the first row, the heading; without one there is no such line.

    Raises:
        ValueError: rows of different lengths.
    """
    sizes = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = [GAP.join(text + " " * (size - width(text)) for text, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
    return [*lines[:1], GAP.join(rule * size for size in sizes), *lines[1:]] if rule and lines else lines


def width(text: str) -> int:
    """Cells of a terminal that ``text`` takes: two for a wide character (UAX #11: W and F), none for a mark on another."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def writable(text: str, encoding: str) -> str:
    """``text`` with what ``encoding`` (the terminal's) does not have replaced: ``≤`` by ``<=``, the unknown by ``?``.

    What the terminal would obey stands as its escape.
    """

    def letter(character: str) -> str:
        try:
            character.encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return character if character.isascii() else _ASCII.get(character, "?")
        return character

    text = printable(text)
    return text if text.isascii() else "".join(map(letter, text))


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
