"""Messages between this worker and vLLM's ranks, as bytes: vLLM would need pickle for arrays."""

from __future__ import annotations

import io
from typing import Any

from pytest_llminfer.worker.protocol.frames import read_message, write_message


def pack(message: dict[str, Any]) -> bytes:
    """A message as one frame."""
    stream = io.BytesIO()
    write_message(stream, message)
    return stream.getvalue()


def unpack(frame: bytes) -> dict[str, Any]:
    """The inverse of :func:`pack`."""
    return read_message(io.BytesIO(frame)) or {}
