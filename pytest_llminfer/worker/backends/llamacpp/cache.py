"""GGUF files made from models, kept in the user's cache directory: made once, complete or not there at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.checkpoints.gguf import read_gguf
from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WHOLE_FILE_BYTES = 64 << 20
_METADATA = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_WAIT_SECONDS = 0.3


def root() -> Path:
    """Where converted files are kept: below XDG_CACHE_HOME, otherwise ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pytest-llminfer" / "gguf"


def fingerprint(folder: Path, *, weights: str, version: str) -> str:
    """sha256 of what a conversion depends on: configuration, tokenizer, weights, and the ``version`` of the converter.

    Weights of up to 64 MiB a file count with their content, larger ones with size, time of change, first and last MiB.
    """
    digest = hashlib.sha256(f"{version}:{weights}".encode())
    for name in _METADATA:
        if (file := folder / name).is_file():
            digest.update(f":{name}:".encode() + (_canonical(file) if name.endswith(".json") else file.read_bytes()))
    for file in sorted(folder.glob("*.safetensors")) if weights == "real" else []:
        status = file.stat()
        digest.update(f":{file.name}:{status.st_size}:".encode())
        if status.st_size <= _WHOLE_FILE_BYTES:
            digest.update(file.read_bytes())
        else:
            digest.update(str(status.st_mtime_ns).encode() + _ends(file, status.st_size))
    return digest.hexdigest()[:32]


def obtain(file: Path, make: Callable[[Path], None], progress: Callable[[str, int, int], None]) -> Path:
    """``file``, made by ``make`` under another name first if it is missing or damaged; one process at a time makes it.

    Raises:
        BadInputError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if _intact(file):
        return file
    with _locked(file.parent / ".lock", progress):
        if _intact(file):
            return file
        # Whoever made these is gone: this process holds the lock.
        for leftover in file.parent.glob("*.unfinished"):
            leftover.unlink(missing_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
        try:
            make(unfinished)
            unfinished.replace(file)
        except OSError as error:
            raise BadInputError(f"{file} cannot be written ({error.strerror}); free the disk or set XDG_CACHE_HOME") from error
        finally:
            unfinished.unlink(missing_ok=True)
    return file


def _intact(file: Path) -> bool:
    try:
        return file.is_file() and bool(read_gguf(file).tensors)
    except BadInputError:
        return False


@contextlib.contextmanager
def _locked(path: Path, progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when its process ends."""
    with path.open("w", encoding="ascii") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress("waiting for a conversion", 0, 1)
                time.sleep(_WAIT_SECONDS)
        yield


def _canonical(file: Path) -> bytes:
    try:
        return json.dumps(json.loads(file.read_text(encoding="utf-8")), sort_keys=True).encode()
    except ValueError as error:
        raise BadInputError(f"{file} is no JSON ({error}); fetch the file again") from error


def _ends(file: Path, size: int) -> bytes:
    with file.open("rb") as stream:
        first = stream.read(1 << 20)
        stream.seek(size - (1 << 20))
        return first + stream.read(1 << 20)
