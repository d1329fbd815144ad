"""A package of another distribution in a worker: imported from its file, and nothing that lies beside it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llminfer.errors import EngineStartError
from pytest_llminfer.worker.foreign import import_package


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test imports is there for no other."""
    yield
    for name in ("llminfer_foreign", "llminfer_foreign.part", "llminfer_single"):
        sys.modules.pop(name, None)


def test_a_package_is_imported_and_what_lies_beside_it_is_not_reached(tmp_path: Path) -> None:
    package = tmp_path / "llminfer_foreign"
    package.mkdir()
    (package / "__init__.py").write_text("COUNT = []")
    (package / "part.py").write_text("VALUE = 3")
    (tmp_path / "llminfer_beside.py").write_text("")
    before = list(sys.path)
    import_package("llminfer_foreign", str(package / "__init__.py"))
    assert importlib.import_module("llminfer_foreign.part").VALUE == 3
    assert sys.path == before
    with pytest.raises(ModuleNotFoundError, match="No module named 'llminfer_beside'"):
        importlib.import_module("llminfer_beside")


def test_a_package_is_imported_once(tmp_path: Path) -> None:
    module = tmp_path / "llminfer_single.py"
    module.write_text("VALUES = []")
    import_package("llminfer_single", str(module))
    importlib.import_module("llminfer_single").VALUES.append(1)
    import_package("llminfer_single", str(module))
    assert importlib.import_module("llminfer_single").VALUES == [1]


def test_a_package_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    module = tmp_path / "llminfer_single.py"
    module.write_text("raise OSError('no licence')")
    with pytest.raises(OSError, match="no licence"):
        import_package("llminfer_single", str(module))
    assert "llminfer_single" not in sys.modules


def test_a_package_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="the package llminfer_gone, which holds the engine's backend, is not at "):
        import_package("llminfer_gone", str(tmp_path / "llminfer_gone" / "__init__.py"))
