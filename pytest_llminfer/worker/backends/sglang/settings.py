"""The configuration in force as plain data, without what differs from one start to the next."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_VOLATILE = frozenset(
    (
        *("path", "paths", "port", "ports", "host", "addr", "address", "url", "urls", "dir", "file", "files", "endpoint"),
        *("key", "keyfile", "certfile", "certs", "password", "id", "ids", "ip", "name", "handler"),
    )
)
"""Words of a field's name that make it a place, a secret or an identity, and no setting."""


def stays(name: str) -> bool:
    """Whether a field is a setting that two starts of one cell share."""
    return not name.startswith("_") and not _VOLATILE & set(name.split("_"))


def resolved(arguments: Mapping[str, Any], known: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the scheduler's ``arguments`` that are fields of ``ServerArgs`` (``known``), and ``facts`` that it worked out."""
    kept = {name: plain(arguments[name]) for name in sorted(known) if stays(name) and name in arguments}
    return {**kept, **facts}


def defaults(server_args: Any) -> dict[str, Any]:
    """Field name to default, of the dataclass ``ServerArgs``; a required one is None."""
    values = {}
    for entry in dataclasses.fields(server_args):
        if entry.default is not dataclasses.MISSING:
            values[entry.name] = entry.default
        elif entry.default_factory is not dataclasses.MISSING:
            values[entry.name] = entry.default_factory()
        else:
            values[entry.name] = None
    return values


def plain(value: Any) -> Any:
    """JSON values; an object is named by its class, never by its address."""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, (set, frozenset)) else items
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    return getattr(value, "__qualname__", type(value).__qualname__)
