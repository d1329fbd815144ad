"""Cells in a table: their ids without the environment where all share it, and with a short form of it where they do not."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_OF_ENVIRONMENTS = {"bin", "python", "python3"}


def short_names(cells: Iterable[str]) -> dict[str, str]:
    """A short name for each cell id, no two alike: ``vllm-tp2``; ``vllm@vllm-0.33`` where another environment has that cell too."""
    cells = list(dict.fromkeys(cells))
    for shorten in (_without_environment, _with_its_name):
        names = {cell: shorten(cell) for cell in cells}
        if max(Counter(names.values()).values(), default=1) == 1:
            return names
    return {cell: cell for cell in cells}


def _without_environment(cell: str) -> str:
    return cell.partition("@")[0]


def _with_its_name(cell: str) -> str:
    name, at, environment = cell.partition("@")
    if "/" in environment and "://" not in environment:
        parts = [part for part in PurePath(environment).parts if part not in _OF_ENVIRONMENTS and not part.startswith("python3.")]
        environment = parts[-1] if parts else environment
    return f"{name}{at}{environment}"
