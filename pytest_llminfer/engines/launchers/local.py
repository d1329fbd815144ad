"""Start a worker as a subprocess of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.engines.launchers import guardian
from pytest_llminfer.errors import EngineStartError
from pytest_llminfer.hardware import processor_name, usable_cores
from pytest_llminfer.worker.protocol.frames import PROCESSOR, SCRATCH

if TYPE_CHECKING:
    from collections.abc import Mapping

WORKER = Path(__file__).resolve().parents[2] / "worker"
_LONGEST_FOLDER = 70
"""A socket's path ends at 107 bytes (unix(7)); vLLM's and SGLang's names take up to 37 of them."""


def scratch() -> Path:
    """A new folder for the temporary files of one worker: engines leave sockets and files behind."""
    folder = Path(tempfile.mkdtemp(prefix="llminfer-"))
    if len(str(folder)) > _LONGEST_FOLDER:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="llminfer-", dir="/tmp"))
    return folder


def start(environment: str, variables: Mapping[str, str], log: Path, folder: Path | None = None) -> subprocess.Popen[bytes]:
    """A worker in the interpreter ``environment`` (empty: this one), with ``variables`` added to its environment.

    Its temporary files go into ``folder``, but what PyTorch compiled stays where the next worker finds it.

    Another interpreter does not inherit our PYTHONPATH: what it names is built for this one.
    It leads a process group of its own, so that one signal ends it with all its children, and Ctrl-C reaches only pytest. Where
    pytest is killed, the guardian ends what does not end itself.
    Its standard output and error go to ``log``.

    Raises:
        EngineStartError: no such interpreter, or it cannot be executed.
    """
    interpreter = environment or sys.executable
    dropped = {"PYTHONHOME"} if _is_own(interpreter) else {"PYTHONHOME", "PYTHONPATH"}
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    own = {
        "OMP_NUM_THREADS": default_threads(),
        "PYTHONUNBUFFERED": "1",
        PROCESSOR: processor_name(),
        guardian.SESSION: guardian.session(),
    }
    settings = {**inherited, **own, **variables}
    if folder:
        settings.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}")
        settings["TMPDIR"] = settings[SCRATCH] = str(folder)
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
            if folder:
                folder.rmdir()
            raise EngineStartError(
                f"cannot start the interpreter {interpreter}: {error.strerror}; "
                "give the path of a Python that has the engine, as in --engine=transformers@/path/to/python"
            ) from error


def _is_own(interpreter: str) -> bool:
    """By path, not by file: the Pythons of two virtual environments may be links to one file."""
    return os.path.abspath(interpreter) == os.path.abspath(sys.executable)


def default_threads() -> str:
    """Threads for one worker: one core stays free, because OpenMP threads that outnumber the cores spin and slow each other."""
    if given := os.environ.get("OMP_NUM_THREADS"):
        return given
    sessions = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return str(max(1, usable_cores() // sessions - 1))
