"""Start a worker as a subprocess of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.errors import EngineStartError

if TYPE_CHECKING:
    from collections.abc import Mapping

WORKER = Path(__file__).resolve().parents[2] / "worker"


def start(environment: str, variables: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A worker in the interpreter ``environment`` (empty: this one), with ``variables`` added to its environment.

    It leads a process group of its own, so that one signal ends it with all its children, and Ctrl-C reaches only pytest.
    Its standard output and error go to ``log``.

    Raises:
        EngineStartError: no such interpreter, or it cannot be executed.
    """
    interpreter = environment or sys.executable
    settings = {**os.environ, "OMP_NUM_THREADS": default_threads(), "PYTHONUNBUFFERED": "1", **variables}
    settings.pop("PYTHONHOME", None)
    with log.open("ab") as stream:
        try:
            return subprocess.Popen(  # noqa: S603 - the interpreter is the one that the user names
                [interpreter, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=settings,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineStartError(
                f"cannot start the interpreter {interpreter}: {error.strerror}; "
                "give the path of a Python that has the engine, as in --engine=transformers@/path/to/python"
            ) from error


def default_threads() -> str:
    """Threads for one worker: one core is left free, because OpenMP threads that outnumber the cores spin and crawl."""
    if given := os.environ.get("OMP_NUM_THREADS"):
        return given
    sessions = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return str(max(1, len(os.sched_getaffinity(0)) // sessions - 1))
