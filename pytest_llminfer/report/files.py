"""The result of a session as files: ``results.json``, and ``answers.jsonl`` where questions were answered."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.baselines.document import replace_file
from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.accuracy.settings import ANSWERS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


def write_answers(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write what was answered into ``folder``: a JSON object a line. What an earlier session left there is replaced.

    Raises:
        BadInputError: it cannot be written there.
    """
    path = folder / ANSWERS_FILE
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _kept_elsewhere(text: str) -> str:
    try:
        path = Path(tempfile.mkdtemp(prefix="llminfer-report-")) / RESULTS
        replace_file(path, text)
    except OSError as error:
        return f"nor could it be kept in a temporary file: {error.strerror or error}"
    return f"it is kept in {path}"
