"""Where a session's baselines lie, and whether it writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class BaselineSettings:
    """Where a session's baselines lie, and whether it writes them.

    Attributes:
        directory: Folder of the project's own records.
        update: What is written: ``""`` for nothing, ``"new"`` for what has no record yet, ``"all"`` for everything that this
            session observes, ``"replace"`` for that too where the record is of other weights or another served model.
    """

    directory: Path
    update: str = ""
