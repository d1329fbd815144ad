"""The order of the rooms, file by file: each imports only what stands above it, and nothing imports in a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from import_graph import ORDER, PACKAGE, PAGE, circles, drawn, edges, folders, modules, table, violations

if TYPE_CHECKING:
    from pathlib import Path


def test_every_room_stands_in_the_order() -> None:
    rooms = {module.partition(".")[0] for module in modules(PACKAGE) if module}
    assert rooms == {room for group in ORDER for room in group}


def test_each_file_imports_only_what_stands_above_it() -> None:
    assert violations(edges(PACKAGE)) == []


def test_no_file_leads_back_to_itself() -> None:
    assert circles(edges(PACKAGE)) == []


def test_no_folder_leads_back_to_itself() -> None:
    assert circles(folders(edges(PACKAGE), PACKAGE)) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package with an import upwards, one that a worker may not make, and a circle of two files in two folders."""
    files = {
        "spec.py": "from pytest_llminfer.report.table import render",
        "report/table.py": "def render(): from pytest_llminfer.plugin.judge import Judge",
        "plugin/judge.py": "from pytest_llminfer.report import table",
        "worker/loop.py": "from pytest_llminfer.models.shape import ModelShape",
        "models/shape.py": "import json",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_what_breaks_the_order_is_found(small: Path) -> None:
    assert sorted(violations(edges(small))) == [
        "report.table imports plugin.judge",
        "spec imports report.table",
        "worker.loop imports models.shape",
    ]


def test_a_circle_is_found_between_files_and_between_folders(small: Path) -> None:
    assert circles(edges(small)) == [["plugin.judge", "report.table"]]
    assert circles(folders(edges(small), small)) == [["plugin", "report"]]


def test_the_page_on_architecture_has_the_imports_of_today() -> None:
    """``python tools/import_graph.py --write`` writes them anew."""
    assert drawn(PAGE.read_text(encoding="utf-8")) == table(edges(PACKAGE))
