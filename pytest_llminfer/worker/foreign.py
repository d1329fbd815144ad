"""A package of another distribution that holds a backend: imported by its path, so that nothing beside it comes onto
``sys.path``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from pytest_llminfer.errors import EngineStartError


def import_package(name: str, file: str) -> None:
    """Import the top-level package or module ``name`` from this file, which lies in the environment of the pytest process.

    The interpreter may be another one, and what lies beside the file may be built for that of pytest. Nothing happens where a
    module of this name has been imported already.

    Raises:
        EngineStartError: no such file.
    """
    if name in sys.modules:
        return
    path = Path(file)
    within = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=within)
    if spec is None or spec.loader is None or not path.is_file():
        raise EngineStartError(f"the package {name}, which holds the engine's backend, is not at {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
