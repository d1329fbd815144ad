"""How an observation is built from a worker's message."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class FromMessage:
    """Build from a worker's message; fields that this version does not know are left out."""

    __slots__ = ()

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """Build from a worker's message."""
        names = {entry.name for entry in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: _frozen(value) for name, value in message.items() if name in names})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
