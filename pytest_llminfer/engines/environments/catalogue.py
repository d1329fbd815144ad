"""The environments that are there: listed, measured, removed."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.engines.environments import cache
from pytest_llminfer.errors import InvalidSpecError, LlminferError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FOLDER = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)-py(?P<python>\d+\.\d+)-[0-9a-f]{8}")
_BLOCK_BYTES = 512  # what st_blocks counts, whatever the file system's own blocks are
_SHOWN = 5
_LOCKED = "is being made or removed by another session; try again when that has finished"


class EnvironmentInUseError(LlminferError):
    """An environment that cannot be removed now."""


@dataclass(frozen=True, slots=True)
class EnvironmentInfo:
    """One environment of the cache.

    Attributes:
        folder: Name of its folder.
        name: Distribution that it was made for.
        version: Version of that distribution; empty where neither its marker nor its folder names it.
        python: Version of its interpreter; empty where neither its marker nor its folder names it.
        path: The folder itself.
        size_bytes: Bytes on the disk, files with several names counted once; 0 where sizes were not requested.
        created: When it was completed, ISO 8601; empty for an incomplete one.
        complete: Whether its installation was finished.
        in_use: Whether a process is making or removing it, or runs from it.
    """

    folder: str
    name: str
    version: str
    python: str
    path: Path
    size_bytes: int
    created: str
    complete: bool
    in_use: bool

    @property
    def interpreter(self) -> Path:
        """The Python to run in it."""
        return cache.python_of(self.path)

    @property
    def requirement(self) -> str:
        """What it was made for: ``NAME==VERSION``."""
        return f"{self.name}=={self.version}"


def list_environments(*, sizes: bool = True) -> list[EnvironmentInfo]:
    """Every environment in the cache, by name. Sizes take a walk through all files: 0 without ``sizes``."""
    return [_describe(folder, sizes=sizes) for folder in _folders()]


def remove(names: Iterable[str] | None) -> list[str]:
    """Remove these environments (folder names, or ``NAME==VERSION`` for all that were made for it); None for all of them.

    Returns the folder names of those that are gone. All are looked up, and none may be in use, before the first is removed.

    Raises:
        InvalidSpecError: there is no such environment; with those that there are.
        EnvironmentInUseError: one is being made, or a process runs from it.
    """
    there = list_environments(sizes=False)
    chosen = there
    if names is not None:
        chosen = []
        for name in names:
            found = [each for each in there if name in {each.folder, each.requirement}]
            if not found:
                raise InvalidSpecError("environment", name, sorted({each.requirement for each in there}) or ["none is there"])
            chosen += [each for each in found if each not in chosen]
    for each in chosen:
        if cache.is_locked(each.path):
            raise EnvironmentInUseError(f"{each.folder} {_LOCKED}")
        _refuse_users(each.path)
    for each in chosen:
        try:
            with cache.locked(each.path):
                _refuse_users(each.path)
                cache.discard(each.path)
                cache.log_of(each.path).unlink(missing_ok=True)
        except BlockingIOError:
            raise EnvironmentInUseError(f"{each.folder} {_LOCKED}") from None
    return [each.folder for each in chosen]


def users(folder: Path) -> list[int]:
    """Processes that run from the environment in ``folder``: its interpreter, or a library of it in their memory.

    Looks through /proc, where the programs of other users cannot be seen; nothing where there is none.
    """
    root = os.path.realpath(folder).encode() + b"/"
    return [pid for pid in _processes() if _runs_from(Path("/proc", str(pid)), {root, os.path.abspath(folder).encode() + b"/"})]


def size_of(folder: Path) -> int:
    """Bytes on the disk of everything in ``folder``; files with several names are counted once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    with contextlib.suppress(OSError):  # what is removed meanwhile has no size
        for _, _, files, descriptor in os.fwalk(folder):
            for name in files:
                found = os.lstat(name, dir_fd=descriptor)
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    total += found.st_blocks * _BLOCK_BYTES
    return total


def _describe(folder: Path, *, sizes: bool) -> EnvironmentInfo:
    marker = cache.read_marker(folder)
    found = _FOLDER.fullmatch(folder.name)
    words = found.groupdict() if found else {"name": folder.name, "version": "", "python": ""}
    facts = marker or {}
    return EnvironmentInfo(
        folder=folder.name,
        name=str(facts.get("name", words["name"])),
        version=str(facts.get("version", words["version"])),
        python=str(facts.get("python", words["python"])),
        path=folder,
        size_bytes=size_of(folder) if sizes else 0,
        created=str(facts.get("created", "")),
        complete=marker is not None,
        in_use=cache.is_locked(folder) or bool(users(folder)),
    )


def _folders() -> list[Path]:
    try:
        return sorted(path for path in cache.environments_folder().iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        return []


def _refuse_users(folder: Path) -> None:
    if found := users(folder):
        shown = ", ".join(map(str, found[:_SHOWN])) + ", ..." * (len(found) > _SHOWN)
        raise EnvironmentInUseError(f"{folder.name} is in use by process {shown}; end it first")


def _processes() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for path in Path("/proc").iterdir():
            if path.name.isdecimal():
                yield int(path.name)


def _runs_from(process: Path, roots: set[bytes]) -> bool:
    # A virtual environment's Python is a link: what the kernel shows as the executable lies elsewhere. Engines rename their
    # processes, which overwrites the command line; the libraries that they mapped stay.
    for name in ("cmdline", "maps"):
        with contextlib.suppress(OSError):
            text = (process / name).read_bytes()
            if name == "cmdline":
                text = text.partition(b"\0")[0]
            if any(root in text for root in roots):
                return True
    return False
