"""The headers of safetensors files: what a checkpoint holds, and whether its files are whole. Standard library only.

Format: 8 bytes little endian with the length of the JSON header, the header (name to dtype, shape and byte range), the data.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llminfer.errors import BadInputError

_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor of a safetensors file lies.

    Attributes:
        file: The file that holds it.
        dtype: In the words of the format (``BF16``).
        shape: As stored; (out, in) for a linear, empty for a single number.
        offset: Where its data start, in bytes from the start of the file.
        stored_bytes: Bytes of its data.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    stored_bytes: int


def is_local(model_path: str) -> bool:
    """Whether ``model_path`` is a path and no id of the Hub, which has exactly one slash and neither starts nor ends with it."""
    return Path(model_path).exists() or model_path.startswith((".", "/", "~")) or model_path.count("/") != 1


def read_configuration(model_path: str) -> dict[str, Any]:
    """The model's config.json: ``model_path`` is the folder that holds it, or the file itself.

    Raises:
        BadInputError: nothing at this path, no config.json there, or a file that holds no JSON object.
    """
    path = Path(model_path)
    file = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise BadInputError(f"there is no model at {path}; give a folder with config.json and *.safetensors")
    if not file.is_file():
        raise BadInputError(f"{path} has no config.json; give the folder of a model")
    try:
        configuration = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{file} is no JSON ({error}); fetch the model again") from error
    if not isinstance(configuration, dict):
        raise BadInputError(f"{file} is not a model's configuration: expected an object")
    return configuration


def read_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the safetensors files in ``folder``; a truncated or corrupt file is named.

    Raises:
        BadInputError: no weights, a file that the index names and that is missing, or a truncated or corrupt file.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        tensors.update(read_header(file))
    return tensors


def read_index(folder: Path) -> dict[str, str] | None:
    """File by tensor name as the index of ``folder`` says; None where there is no index.

    Raises:
        BadInputError: the index is damaged.
    """
    index = folder / _INDEX
    if not index.is_file():
        return None
    try:
        return {str(name): str(file) for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInputError(f"{index} is damaged ({error}); fetch the model again") from error


def _weight_files(folder: Path) -> list[Path]:
    if (indexed := read_index(folder)) is not None:
        names = sorted(set(indexed.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise BadInputError(f"{folder} lacks {', '.join(missing)}, which {_INDEX} names; fetch the model again")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInputError(f"{folder} has no *.safetensors weights; fetch them, or use weights=dummy for random ones")
    return files


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, after checking that the file is as long as its header says.

    Raises:
        BadInputError: the file is shorter than its header says, or its header is damaged.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, _MAX_HEADER)))
        header.pop("__metadata__", None)
        start = 8 + length
        tensors = {name: _stored_tensor(file, start, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise BadInputError(f"{file} is no intact safetensors file ({error}); fetch it again") from error
    end = max((tensor.offset + tensor.stored_bytes for tensor in tensors.values()), default=start)
    if size < end:
        raise BadInputError(f"{file} is truncated: {size} bytes of {end}; fetch it again")
    return tensors


def read_text(tensor: StoredTensor) -> str:
    """The text in a tensor of bytes: some tools store JSON that way."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        return stream.read(tensor.stored_bytes).decode(errors="replace")


def _stored_tensor(file: Path, start: int, entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    bits = _BITS.get(entry["dtype"])
    if begin < 0 or end < begin or (bits is not None and math.prod(shape) * bits != (end - begin) * 8):
        raise ValueError(f"a tensor of shape {shape} and type {entry['dtype']} in {end - begin} bytes")
    return StoredTensor(file, entry["dtype"], shape, start + begin, end - begin)
