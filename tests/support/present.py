"""What an answer may lack, and a test knows to be there."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """The value itself; a test that finds nothing there fails."""
    assert value is not None
    return value
