"""The result of a session as a file, ``results.json``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.baselines.document import replace_file
from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from pytest_llminfer.report.result import SessionResult

RESULTS = "results.json"
JSON_SCHEMA = Path(__file__).resolve().parent / "schema" / "results.schema.json"
"""What describes ``results.json`` (JSON Schema, draft 2020-12)."""


def write(folder: Path, result: SessionResult) -> Path:
    """Write the result into ``folder``, which is made where it is missing; the file is replaced whole, or left as it was.

    Raises:
        BadInputError: it cannot be written there; the message names the temporary file that has it instead.
    """
    text = json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    # A name of a file that is no UTF-8 becomes an escape of JSON's own.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    path = folder / RESULTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror or error}; {_kept_elsewhere(text)}") from error
    return path


def _kept_elsewhere(text: str) -> str:
    try:
        path = Path(tempfile.mkdtemp(prefix="llminfer-report-")) / RESULTS
        replace_file(path, text)
    except OSError as error:
        return f"nor could it be kept in a temporary file: {error.strerror or error}"
    return f"it is kept in {path}"
