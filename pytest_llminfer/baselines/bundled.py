"""The baselines that come with an installed package; in a checkout the project's own folder is the same data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.baselines.store import LayeredSource, Store

if TYPE_CHECKING:
    from pytest_llminfer.baselines.store import BaselineSource

BUNDLED = Path(__file__).resolve().parent.parent / "bundled_baselines"


def with_bundled(own: Store) -> BaselineSource:
    """The project's own records first, then those that come with the package."""
    return LayeredSource([own, Store(BUNDLED)]) if BUNDLED.is_dir() else own
