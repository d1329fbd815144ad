"""The folder that holds the environments: where it is, what marks a finished one, and the lock of each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sysconfig
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pytest_llminfer.errors import EngineStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MARKER = "llminfer.json"


def cache_folder() -> Path:
    """The user's cache folder for this package: below XDG_CACHE_HOME, else ``~/.cache``. It may not exist yet."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says to ignore relative values: they would name another folder after every cd.
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return base / "pytest-llminfer"


def environments_folder() -> Path:
    """The folder with one folder an environment. It may not exist yet."""
    return cache_folder() / "environments"


def python_of(folder: Path) -> Path:
    """The interpreter of the environment in ``folder``."""
    return folder / "bin" / "python"


def site_packages_of(folder: Path) -> list[Path]:
    """Where the environment of this Python's minor version in ``folder`` keeps its packages."""
    variables = {"base": str(folder), "platbase": str(folder)}
    return list(dict.fromkeys(Path(sysconfig.get_path(kind, "venv", variables)) for kind in ("purelib", "platlib")))


def log_of(folder: Path) -> Path:
    """What the installer printed while the environment in ``folder`` was made."""
    return folder.parent / ".logs" / f"{folder.name}.log"


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What was noted when the environment in ``folder`` was finished; None for one that was not, or has lost its Python."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and os.access(python_of(folder), os.X_OK) else None


def write_marker(folder: Path, facts: dict[str, Any]) -> None:
    """Note that the environment in ``folder`` is finished; all of it or nothing."""
    temporary = folder / f"{MARKER}.new"
    temporary.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / MARKER)


def discard(folder: Path) -> None:
    """Remove an environment; the marker first, so that one which is cut short counts as half made."""
    (folder / MARKER).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


@contextlib.contextmanager
def locked(folder: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[IO[bytes]]:
    """Hold the lock of one environment; its file is yielded, for the processes that work under it.

    waiting: called before the wait when another process holds it.

    Raises:
        BlockingIOError: another process holds it, and ``waiting`` is None.
        EngineStartError: the cache folder cannot be written.
    """
    import fcntl  # not on every platform, where a session without engines must do without it

    path = _lock_of(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab")
    except OSError as error:
        raise EngineStartError(
            f"cannot write to the cache folder {path.parent}: {error.strerror}; let XDG_CACHE_HOME name one that can be written"
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise
            waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def is_locked(folder: Path) -> bool:
    """Whether a process is making or removing the environment in ``folder``."""
    if not _lock_of(folder).exists():
        return False
    try:
        with locked(folder):
            return False
    except BlockingIOError:
        return True


def _lock_of(folder: Path) -> Path:
    # Never unlinked: a process that waits for a lock file that is gone would hold a lock on nothing.
    return folder.parent / ".locks" / folder.name
