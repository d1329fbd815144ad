"""The header of a GGUF file: its metadata, and where each tensor lies and how it is stored. Standard library only.

Format (version 2 and 3, little endian): magic, version, counts of tensors and of metadata entries, the entries, the tensors'
names, dimensions (fastest first), types and offsets, padding to the alignment, the data.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pytest_llminfer.errors import BadInputError

GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    9: ("q8_1", 32, 36),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
}
"""ggml's number of a type: its name, elements of a block, bytes of a block."""

FILE_TYPES: dict[int, str] = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    7: "q8_0",
    14: "q4_k_s",
    15: "q4_k_m",
    17: "q5_k_m",
    18: "q6_k",
    32: "bf16",
}
"""``general.file_type`` to the name of the mixture."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One stored tensor of a GGUF file.

    Attributes:
        name: As in the file (``blk.0.attn_q.weight``).
        ggml_type: ggml's name of its type in lower case, a value of ``GGML_TYPES`` (``q4_k``, ``f16``).
        shape: Slowest dimension first: (out, in) for a linear.
        offset: Where its data start, in bytes from the start of the file.
        stored_bytes: Bytes of its data, the scales of its blocks included.
        block_size: Elements of a block, which share scales; 1 for types that are not packed.
    """

    name: str
    ggml_type: str
    shape: tuple[int, ...]
    offset: int
    stored_bytes: int
    block_size: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of one GGUF file.

    Attributes:
        path: The file.
        version: Version of the format, 2 or 3.
        metadata: Key to number, string, bool or list, as stored (``general.architecture``).
        tensors: Name to tensor, in the order of the file.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def file_type(self) -> str:
        """The mixture of types that the file says it holds (``f16``, ``q4_k_m``); its number where that is not known here."""
        number = self.metadata.get("general.file_type")
        return FILE_TYPES.get(number, str(number)) if isinstance(number, int) else "unknown"


def read_gguf(path: str | Path) -> GgufFile:
    """Read the header, and check that the file is as long as it says.

    Raises:
        BadInputError: no GGUF file, a damaged or truncated one, or a tensor type that is not known here.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            return _read(file, stream, file.stat().st_size)
    except OSError as error:
        raise BadInputError(f"{file} cannot be read ({error.strerror})") from error
    except (EOFError, UnicodeDecodeError, ValueError, struct.error, OverflowError, MemoryError) as error:
        raise BadInputError(f"{file} is no intact GGUF file ({error}); fetch or convert it again") from error


def _read(file: Path, stream: IO[bytes], size: int) -> GgufFile:
    if (magic := stream.read(4)) != b"GGUF":
        raise ValueError(f"it begins with {magic!r} instead of b'GGUF'")
    reader = _Reader(stream, size)
    version = reader.number("<I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}; known: 2 and 3")
    tensor_count, entry_count = reader.number("<Q"), reader.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = reader.string()
        metadata[key] = reader.value(reader.number("<I"))
    infos = [reader.tensor_info() for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    start = -(-stream.tell() // alignment) * alignment
    tensors = {name: _tensor(name, shape, kind, start + offset) for name, shape, kind, offset in infos}
    if len(tensors) != len(infos):
        raise ValueError("two tensors have one name")
    end = max((tensor.offset + tensor.stored_bytes for tensor in tensors.values()), default=start)
    if size < end:
        raise BadInputError(f"{file} is truncated: {size} bytes of {end}; fetch or convert it again")
    return GgufFile(file, version, metadata, tensors)


def _tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    if kind not in GGML_TYPES:
        raise ValueError(f"tensor {name} has the ggml type {kind}, which is not known here")
    ggml_type, block, block_bytes = GGML_TYPES[kind]
    if shape and shape[-1] % block:
        raise ValueError(f"tensor {name} has rows of {shape[-1]} elements, which is no multiple of a block of {block}")
    return GgufTensor(name, ggml_type, shape, offset, math.prod(shape) // block * block_bytes, block)


class _Reader:
    """Numbers and strings one after another; a length that goes past the end of the file is an error at once."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size

    def bytes(self, count: int) -> bytes:
        if count > self._size - self._stream.tell():
            raise EOFError(f"{count} bytes are wanted where {self._size - self._stream.tell()} are left")
        return self._stream.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.bytes(self.number("<Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _BOOL:
            return bool(self.number("<B"))
        if kind == _ARRAY:
            return self._array(self.number("<I"), self.number("<Q"))
        if kind not in _SCALARS:
            raise ValueError(f"a metadata value of the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self, kind: int, count: int) -> list[Any]:
        if count > self._size:
            raise EOFError(f"a list of {count} entries")
        if kind in _SCALARS:
            form = f"<{count}{_SCALARS[kind][1]}"
            return list(struct.unpack(form, self.bytes(struct.calcsize(form))))
        return [self.value(kind) for _ in range(count)]

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        dimensions = self.number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
        return name, shape, self.number("<I"), self.number("<Q")
