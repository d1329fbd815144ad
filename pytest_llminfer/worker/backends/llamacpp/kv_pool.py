"""The KV cache that llama.cpp takes when its context is made: its size follows from the file and the types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.gguf import GGML_TYPES
from pytest_llminfer.checkpoints.gguf_layout import TORCH_NAMES
from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from pytest_llminfer.checkpoints.gguf import GgufFile


def report(file: GgufFile, cells: int, key_type: int, value_type: int, *, longest: int) -> dict[str, Any]:
    """The fields of ``KVPool``; a cell holds one token of one sequence. dtype: of the keys, and of the values if it is another."""
    heads = metadata(file, "attention.head_count")
    kv_heads = metadata(file, "attention.head_count_kv", heads)
    head_dim = metadata(file, "embedding_length") // heads
    layers = metadata(file, "block_count")
    row_bytes = [
        _row_bytes(kind, kv_heads * metadata(file, f"attention.{part}_length", head_dim))
        for kind, part in ((key_type, "key"), (value_type, "value"))
    ]
    names = [TORCH_NAMES.get(GGML_TYPES[kind][0], GGML_TYPES[kind][0]) for kind in (key_type, value_type)]
    return {
        "num_blocks": cells,
        "block_size": 1,
        "capacity_tokens": cells,
        "dtype": "+".join(dict.fromkeys(names)),
        "stored_bytes": layers * cells * sum(row_bytes),
        "bytes_per_token": layers * sum(row_bytes),
        "max_model_len": longest,
    }


def metadata(file: GgufFile, key: str, otherwise: int | None = None) -> int:
    """A size of the model from the file's metadata.

    Raises:
        BadInputError: the key is missing and ``otherwise`` is None, or its value is no whole number.
    """
    value = file.metadata.get(f"{file.metadata.get('general.architecture')}.{key}", otherwise)
    if not isinstance(value, int):
        raise BadInputError(f"{file.path.name} has no {key} as one number; convert or fetch the file again")
    return value


def _row_bytes(kind: int, elements: int) -> int:
    name, block, block_bytes = GGML_TYPES[kind]
    if elements % block:
        raise BadInputError(f"a KV cache of type {name} needs rows of a multiple of {block} elements, not {elements}")
    return elements // block * block_bytes
