"""How a long list of differences is shown: the first ones by name, the rest counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN = 8


def first_offenders(lines: Sequence[str], *, shown: int = SHOWN) -> tuple[str, ...]:
    """The first ``shown`` lines, and one that counts the rest."""
    rest = len(lines) - shown
    return (*lines[:shown], *((f"and {rest:,} more",) if rest > 0 else ()))
