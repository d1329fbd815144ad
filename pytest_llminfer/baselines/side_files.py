"""Arrays that belong to a record and are too large for JSON: compressed files beside it, named by their own hash.

A record refers to one as ``{"name": "divergence-<12 digits>.npz", "sha256": …}`` under ``side_file`` of what it expects. Baselines
are data that others may have written, in a pull request for example: no name in them leads out of the folder of their file.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import secrets
import zipfile
from typing import TYPE_CHECKING, Any

from pytest_llminfer.baselines.document import read
from pytest_llminfer.errors import BaselineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np

FIELD = "side_file"
_DIGITS = 12
_NAME = re.compile(r"[a-z0-9_]+-[0-9a-f]{12}\.npz")
_NO_TIME = (1980, 1, 1, 0, 0, 0)
"""The same arrays are the same bytes, whenever they are stored: NumPy itself would write the time of day."""


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as a compressed NumPy archive (.npz), the same bytes every time."""
    import numpy as np

    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _NO_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getvalue())
    return target.getvalue()


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """The arrays by name. Nothing in them is executed: objects are refused."""
    import numpy as np

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def refer(family: str, content: bytes) -> dict[str, str]:
    """What a record says of its side file."""
    digest = hashlib.sha256(content).hexdigest()
    return {"name": f"{family}-{digest[:_DIGITS]}.npz", "sha256": digest}


def inside(folder: Path, reference: Mapping[str, Any]) -> Path:
    """Where the side file that a record refers to lies in a folder: a plain file of its own, whatever the record says.

    Raises:
        BaselineError: the record names something else, such as a path, or the file is a link.
    """
    name = reference.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BaselineError(f"{name!r} is no name of a side file (<family>-<12 hexadecimal digits>.npz): the baseline was altered")
    path = folder / name
    if path.is_symlink():
        raise BaselineError(f"side file {path} is a link, which is not followed; put the file itself there")
    return path


def load(reference: Mapping[str, Any], folders: Iterable[Path]) -> bytes:
    """The content of a side file, from the first of the folders that has it.

    Raises:
        BaselineError: none has it, it cannot be read, or its content is not what was recorded.
    """
    name, way_out = reference.get("name"), "restore it from version control, or record anew with --update-baselines"
    for folder in folders:
        path = inside(folder, reference)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BaselineError(f"side file {path} cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(content).hexdigest() != reference["sha256"]:
            raise BaselineError(f"side file {path} is not what was recorded (its sha256 differs); {way_out}")
        return content
    raise BaselineError(f"side file {name}, which a baseline names, is missing; {way_out}")


def write(path: Path, content: bytes) -> None:
    """Put ``content`` into ``path``, whole or not at all.

    Raises:
        BaselineError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BaselineError(f"side file {path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def named(document: Path) -> set[Path]:
    """The side files that the records in a baseline file refer to; none where there is no file.

    Raises:
        BaselineError: the file cannot be used, or names something else.
    """
    entries = (read(document) or {"entries": {}})["entries"].values()
    return {
        inside(document.parent, entry["expected"][FIELD]) for entry in entries if isinstance(entry["expected"].get(FIELD), dict)
    }


def remove_unnamed(document: Path, files: Iterable[Path]) -> None:
    """Delete those of ``files`` that no record in ``document`` refers to any more.

    Raises:
        BaselineError: the file cannot be used.
    """
    for path in set(files) - named(document):
        path.unlink(missing_ok=True)


class SideFiles:
    """What a controller does with the side files that its workers made."""

    def __init__(self) -> None:
        self._waiting: dict[str, str] = {}
        self._files: dict[Path, set[Path]] = {}

    def take(self, note: Mapping[str, str]) -> None:
        """Keep the content of a side file, ``{"name", "content"}`` in base64, until its record comes."""
        self._waiting[note["name"]] = note["content"]

    def write(self, document: Path, expected: Mapping[str, Any]) -> None:
        """Write what a record names, before the record itself: none is ever without its side file.

        Raises:
            BaselineError: it cannot be written.
        """
        reference = expected.get(FIELD)
        if isinstance(reference, dict) and reference.get("name") in self._waiting:
            path = inside(document.parent, reference)
            self._files.setdefault(document, set()).update({path, *named(document)})
            write(path, base64.b64decode(self._waiting[path.name]))

    def settle(self) -> str:
        """Delete what records named before they were replaced: at the end, since a worker may still read it. What went wrong."""
        for document, files in self._files.items():
            try:
                remove_unnamed(document, files)
            except (BaselineError, OSError) as error:
                return f"side files beside {document} cannot be removed: {error}"
        return ""
