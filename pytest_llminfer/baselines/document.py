"""The file format: read with one clear line for whatever is wrong, written so that a change reads well in a review."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BaselineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = 2
_RECORD_FIELDS = ("expected", "conditions", "provenance")
WAY_OUT = "restore it from version control, or delete it and record anew with --update-baselines"
_INDENT = "  "


def read(path: Path, *, oldest: int = SCHEMA) -> dict[str, Any] | None:
    """The document in ``path``; None where there is no file.

    ``{"schema": 2, "family": …, "entries": {name: {"expected": {}, "conditions": {}, "provenance": {}}}}``, where family is
    the file's name. oldest: the schema from which on the caller can read it.

    Raises:
        BaselineError: the file cannot be read, is not such a document, or another version wrote it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"baseline file {path} cannot be read: {error.strerror or error}"
        raise BaselineError(message) from error
    if conflict := _conflict(content):
        message = f"baseline file {path} holds the marks of a merge conflict (line {conflict}): keep one side, or {WAY_OUT}"
        raise BaselineError(message)
    try:
        document = json.loads(content.decode(), object_pairs_hook=_without_repeats, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        # The message of the decoder itself, which names line and column, fits in the one line.
        message = f"baseline file {path} is not JSON: {error}; {WAY_OUT}"
        raise BaselineError(message) from error
    if wrong := _what_is_wrong(document, path, oldest):
        message = f"baseline file {path} {wrong}"
        raise BaselineError(message)
    return dict(document)


def empty(family: str) -> dict[str, Any]:
    """A document without entries."""
    return {"schema": SCHEMA, "family": family, "entries": {}}


def _conflict(content: bytes) -> int:
    """The first line that git left where two sides of a merge differ; 0 where there is none."""
    marks = (b"<<<<<<< ", b">>>>>>> ")
    return next((number for number, line in enumerate(content.splitlines(), 1) if line.startswith(marks)), 0)


def _what_is_wrong(document: Any, path: Path, oldest: int) -> str:  # noqa: PLR0911 - one return a fault
    if not isinstance(document, dict):
        return f"holds a {type(document).__name__}, not an object; {WAY_OUT}"
    schema = document.get("schema")
    if type(schema) is not int or schema < 1:
        return f"has no valid 'schema' (found {schema!r}); {WAY_OUT}"
    if schema > SCHEMA:
        return f"was written by a newer version (schema {schema}); upgrade pytest-llminfer"
    if schema < oldest:
        return f"was written by an older version (schema {schema}); bring it up to date: llminfer baselines migrate {_root(path)}"
    if document.get("family") != path.stem:
        return f"holds the family {document.get('family')!r}, not {path.stem!r}; {WAY_OUT}"
    entries = document.get("entries")
    if not isinstance(entries, dict):
        return f"has no 'entries' object; {WAY_OUT}"
    for name, entry in entries.items():
        for field in _RECORD_FIELDS:
            if not isinstance(entry, dict) or not isinstance(entry.get(field), dict):
                return f"has no {field!r} object in the entry {name!r}; {WAY_OUT}"
    return ""


def _root(path: Path) -> Path:
    """The folder of baselines that a file ``<hardware>/<model>/<family>.json`` lies in."""
    return path.parent.parent.parent


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        # A merge gone wrong leaves this behind; the decoder would silently keep the last one.
        message = f"the key {repeated!r} stands twice in one object"
        raise ValueError(message)
    return found


def _refuse(constant: str) -> None:
    message = f"{constant} is not a JSON number"
    raise ValueError(message)


def render(value: Any, indent: str = "") -> str:
    """``value`` as JSON text: sorted keys, indent 2, but a list without lists and objects in it on one line."""
    deeper = indent + _INDENT
    if isinstance(value, dict) and value:
        lines = [f"{deeper}{_text(name)}: {render(value[name], deeper)}" for name in sorted(value)]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        return "[\n" + ",\n".join(deeper + render(item, deeper) for item in value) + f"\n{indent}]"
    return _text(value)


def _text(value: Any) -> str:
    """JSON of a value or a flat list, in one line."""
    quoted = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if quoted.isprintable():
        return quoted
    # What a reviewer could not see (a no-break space, a bidirectional mark), and what UTF-8 cannot hold, is escaped.
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in quoted)


def replace_file(path: Path, text: str) -> None:
    """Put ``text`` into ``path``: a reader finds the old file or the new one, never a part.

    Raises:
        OSError: it cannot be written; ``path`` is then as it was.
    """
    path = path.resolve()  # a link stays a link
    # Not from tempfile, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def locked(path: Path, *, timeout_seconds: float = 60.0) -> Iterator[None]:
    """Hold the lock of ``path`` among all processes; its file ``.<name>.lock`` is gone afterwards.

    On a file system without locks (``flock`` is not supported) this holds nothing.

    Raises:
        TimeoutError: another process held it all that time. OSError: the lock's file cannot be made.
    """
    lock = path.with_name(f".{path.name}.lock")
    deadline = time.monotonic() + timeout_seconds
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _acquired(descriptor) and _still_there(lock, descriptor):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            message = f"{lock} was held by another session for {timeout_seconds:g} s"
            raise TimeoutError(message)
        time.sleep(0.01)
    try:
        yield
    finally:
        # What was written is written: a lock that stays behind harms nobody.
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def _acquired(descriptor: int) -> bool:
    import fcntl  # not on every platform, where a session without engines must do without it

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _still_there(lock: Path, descriptor: int) -> bool:
    """Whether the locked file is the one that others find; the holder before may have removed it."""
    try:
        return os.path.samestat(lock.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
