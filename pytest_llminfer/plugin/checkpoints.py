"""The checkpoints that ``--checkpoint`` names: one test each, beside the cells and without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.plugin.session import settings_of
from pytest_llminfer.report import notes

if TYPE_CHECKING:
    import pytest

FIXTURE = "llminfer_checkpoint"


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a checkpoint once for each that is named; where none is, ``collection`` drops the one without."""
    if FIXTURE in metafunc.fixturenames:
        metafunc.parametrize(FIXTURE, settings_of(metafunc.config).checkpoints.paths or ("",), ids=str, indirect=True)


def names_none(item: pytest.Item) -> bool:
    """Whether the test needs a checkpoint, and none is named."""
    return _path(item) == ""


def _path(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(FIXTURE)


def name_cells(items: list[pytest.Item]) -> None:
    """Give each such test its row in the table: ``checkpoint:`` and the last part of the path, the whole path after an @."""
    for item in items:
        if path := _path(item):
            item.user_properties.append((notes.CELL, f"checkpoint:{Path(path).expanduser().resolve().name}@{path}"))
