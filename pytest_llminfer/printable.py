"""What engines, servers and files say, as it can be shown: without terminal control, and of a length that can be read.

Standard library only.
"""

from __future__ import annotations

MOST_CHARACTERS = 20_000
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
"""C0, DEL and C1."""
_TURNS = (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Marks that turn the direction of writing."""
_OBEYED = {chr(code): ascii(chr(code))[1:-1] for code in (*_CONTROLS, *_TURNS) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """``text`` with every character that a terminal obeys as its escape; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(_OBEYED.get(each, each) for each in text)


def bounded(text: str, most: int = MOST_CHARACTERS) -> str:
    """``text``, or its two ends and how much lies between."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
