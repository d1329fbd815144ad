"""Messages between the pytest process and a worker: a JSON header and raw array buffers, over two pipes.

A frame is the magic, the header's length (4 bytes, little endian), the header (UTF-8 JSON), then the array buffers one after
another. An array stands in the header as ``{"__array__": {"dtype": "<f4", "shape": [2, 3]}}``. No pickle: nothing that a worker
sends is executed. NumPy is imported only where an array is met.
"""

from __future__ import annotations

import json
import struct
import sys
from typing import IO, Any

MAGIC = b"LLM1"
SCRATCH = "LLMINFER_SCRATCH"
"""The variable that names the folder of a worker's temporary files: whoever of the two ends last takes it away."""
PROCESSOR = "LLMINFER_PROCESSOR"
"""The variable with the name of the worker's processor, read by whoever started it."""
ACCELERATOR = "LLMINFER_ACCELERATOR"
"""The variable with the name of the worker's first accelerator, as nvidia-smi has it; not set without one."""
_LENGTH = struct.Struct("<I")
_PLAIN = frozenset({int, float, str, bool, type(None)})


class ProtocolError(Exception):
    """The bytes on the pipe are no frame: something else wrote to it, or the two sides differ in version."""


def write_message(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one frame and flush it."""
    buffers: list[Any] = []
    header = json.dumps(_take_arrays(message, buffers)).encode()
    stream.write(MAGIC + _LENGTH.pack(len(header)) + header)
    for buffer in buffers:
        stream.write(buffer.data if buffer.flags.c_contiguous and buffer.ndim else buffer.tobytes())
    stream.flush()


def read_message(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message, or None at the end of the stream.

    Raises:
        ProtocolError: not a frame, or one cut short.
    """
    start = stream.read(len(MAGIC) + _LENGTH.size)
    if not start:
        return None
    if len(start) < len(MAGIC) + _LENGTH.size or not start.startswith(MAGIC):
        raise ProtocolError(f"expected a message, got {start!r}")
    (length,) = _LENGTH.unpack(start[len(MAGIC) :])
    message = json.loads(_read_exactly(stream, length))
    result = _put_arrays(message, stream)
    if not isinstance(result, dict):
        raise ProtocolError(f"expected an object, got {type(result).__name__}")
    return result


def _read_exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise ProtocolError(f"a message was cut short: {len(data)} of {length} bytes")
    return data


def _take_arrays(value: Any, buffers: list[Any]) -> Any:
    """``value`` with every array replaced by its description; the arrays are appended to ``buffers`` in reading order."""
    if isinstance(value, dict):
        return {str(key): _take_arrays(item, buffers) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # Nearly all that is sent is lists of token ids: one look at their types instead of a call for each.
        plain = _PLAIN.issuperset(map(type, value))
        return value if plain else [_take_arrays(item, buffers) for item in value]
    # Not imported, or by another thread just now: then nothing can be an array yet.
    numpy = sys.modules.get("numpy")
    scalar, array = (getattr(numpy, name, ()) for name in ("generic", "ndarray"))
    if isinstance(value, scalar):
        return value.item()
    if isinstance(value, array):
        if value.dtype.hasobject:
            raise TypeError("an array of Python objects cannot be sent")
        buffers.append(value)
        return {"__array__": {"dtype": value.dtype.str, "shape": list(value.shape)}}
    return value


def _put_arrays(value: Any, stream: IO[bytes]) -> Any:
    """The inverse of :func:`_take_arrays`: dictionaries keep their order, so buffers are met as they were written."""
    if isinstance(value, list):
        if _PLAIN.issuperset(map(type, value)):
            return value
        return [_put_arrays(item, stream) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"__array__"}:
        import numpy as np

        dtype, shape = np.dtype(value["__array__"]["dtype"]), value["__array__"]["shape"]
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(bytearray(_read_exactly(stream, count * dtype.itemsize)), dtype=dtype).reshape(shape)
    return {key: _put_arrays(item, stream) for key, item in value.items()}
