"""The checkpoints that ``--checkpoint`` names: one test each, beside the cells and without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llminfer.plugin import options
from pytest_llminfer.report import notes

FIXTURE = "checkpoint"


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a checkpoint once for each that is named; a visible skip where none is."""
    if FIXTURE not in metafunc.fixturenames:
        return
    paths = metafunc.config.stash[options.STASH].checkpoint
    if paths:
        metafunc.parametrize(FIXTURE, paths, ids=str, indirect=True)
    else:
        skip = pytest.mark.skip(reason="no checkpoint is named; name one with --checkpoint=PATH")
        metafunc.parametrize(FIXTURE, [pytest.param("", id="no-checkpoint", marks=skip)], indirect=True)


def name_cells(items: list[pytest.Item]) -> None:
    """Give each such test its row in the table: ``checkpoint:`` and the last part of the path, the whole path after an @."""
    for item in items:
        path = getattr(item, "callspec", None) and item.callspec.params.get(FIXTURE)  # type: ignore[attr-defined]
        if path:
            item.user_properties.append((notes.CELL, f"{FIXTURE}:{Path(path).expanduser().resolve().name}@{path}"))
