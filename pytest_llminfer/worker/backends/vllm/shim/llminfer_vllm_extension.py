"""What vLLM's processes import by name: they know neither this package nor where it lies.

The folder of this file is on their PYTHONPATH, and holds nothing else: the folder that holds the package is a site-packages of
another interpreter, whose torch could shadow the engine's own.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _load_package() -> None:
    if "pytest_llminfer" in sys.modules:
        return
    package = Path(__file__).resolve().parents[4]
    spec = importlib.util.spec_from_file_location(
        "pytest_llminfer", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load the package from {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pytest_llminfer"] = module
    spec.loader.exec_module(module)


_load_package()

from pytest_llminfer.worker.backends.vllm.extension import RankExtension  # noqa: E402 - the package is loaded above
from pytest_llminfer.worker.backends.vllm.replay import ForcedTokens  # noqa: E402 - likewise

__all__ = ["ForcedTokens", "RankExtension"]
