"""What tests report to the process that gathers results and alone writes files: notes, by name, each a mapping of plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD = "llminfer_record"
"""A record to be written: ``{"key", "expected", "conditions", "provenance", "replaced"}``, the last being in which conditions it
differs from the record that it replaces: a line each."""
USED = "llminfer_baseline_used"
"""The key of a record that a test was judged by."""
MISSING = "llminfer_baseline_missing"
"""A record that was not found: ``{"key", "same_command"}``."""
SIDE_FILE = "llminfer_side_file"
"""Arrays that the record after it refers to: ``{"name", "content"}``, in base64."""


class Note(Protocol):
    """Takes a note of a test to the process that gathers them, over the boundaries of pytest-xdist."""

    def __call__(self, name: str, value: Mapping[str, Any]) -> None:
        """``name``: one of those above, or a family's own; ``value``: plain data that JSON can hold."""
