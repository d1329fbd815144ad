"""Entry of a worker: ``<interpreter> <path>/worker``. Loads this package from where this file lies, and nothing beside it.

The interpreter may be another environment, of another engine, so the folder that holds this package must not come onto its
``sys.path``: it is a site-packages whose torch or transformers could shadow the environment's own.
"""

import importlib.util
import sys
from pathlib import Path

TOO_OLD_STATUS = 3


def _load_package() -> None:
    package = Path(__file__).resolve().parent.parent
    if sys.path and Path(sys.path[0] or ".").resolve() == package / "worker":
        del sys.path[0]
    spec = importlib.util.spec_from_file_location(
        "pytest_llminfer", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load the package from {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pytest_llminfer"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - the interpreter is the engine's, not the one that pytest needs
        sys.stderr.write(f"a worker needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}\n")
        sys.exit(TOO_OLD_STATUS)
    _load_package()
    from pytest_llminfer.worker.loop import main

    main()
