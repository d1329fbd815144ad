"""Where a session's baselines lie, and whether it writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class BaselineSettings:
    """directory: the folder of the project's own records.

    update: what is written: ``""``: nothing; ``"new"``: what has no record yet; ``"all"``: what this session observes;
    ``"replace"``: that too where the record is of other weights or another served model.
    """

    directory: Path
    update: str = ""
