"""The contents of the KV cache for one prompt, through llama.cpp's saved state of a sequence."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.checkpoints.gguf import GGML_TYPES
from pytest_llminfer.checkpoints.gguf_layout import TORCH_NAMES
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.worker.backends.llamacpp import kv_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.checkpoints.gguf import GgufFile
    from pytest_llminfer.worker.backends.llamacpp.decoder import Decoder

_READABLE = ("f32", "f16", "bf16", "q8_0", "q4_0")
_KEY, _VALUE = 0, 1


@dataclass(frozen=True, slots=True)
class CacheReader:
    """Reads what a sequence holds in the KV cache.

    Attributes:
        library: The module with llama.cpp's C functions.
        decoder: The context whose cache is read.
        layers: Layers of the model.
        heads: KV heads of a layer.
        head_dims: Elements of one head's key and of its value.
        kinds: ggml's number of the type of keys and of values.
    """

    library: Any
    decoder: Decoder
    layers: int
    heads: int
    head_dims: tuple[int, int]
    kinds: tuple[int, int]

    @classmethod
    def of(cls, library: Any, decoder: Decoder, file: GgufFile, kinds: tuple[int, int]) -> CacheReader:
        """For the model in ``file``."""
        queries = kv_pool.metadata(file, "attention.head_count")
        usual = kv_pool.metadata(file, "embedding_length") // queries
        head_dims = (
            kv_pool.metadata(file, "attention.key_length", usual),
            kv_pool.metadata(file, "attention.value_length", usual),
        )
        heads = kv_pool.metadata(file, "attention.head_count_kv", queries)
        return cls(library, decoder, kv_pool.metadata(file, "block_count"), heads, head_dims, kinds)

    def report(self, prompt: Sequence[int], extend: int) -> dict[str, Any]:
        """The fields of ``CacheReport``: a snapshot after the prompt, and the same positions after ``extend`` greedy tokens."""
        self.decoder.clear()
        logits = self.decoder.feed(prompt)
        before = self._snapshot(len(prompt))
        for number in range(extend):
            logits = self.decoder.feed([int(logits.argmax())], len(prompt) + number)
        after = self._snapshot(len(prompt) + extend)
        return {
            "prompt_tokens": len(prompt),
            "extended_tokens": extend,
            "layers": [self._layer(len(prompt))] * self.layers,
            "extended_layers": [self._layer(len(prompt) + extend)] * self.layers,
            "prefix_differences": [
                [float(np.abs(old - new[: len(prompt)]).max()) for old, new in zip(snapshot, live, strict=True)]
                for snapshot, live in zip(before, after, strict=True)
            ],
        }

    def _layer(self, length: int) -> dict[str, Any]:
        names = [TORCH_NAMES.get(GGML_TYPES[kind][0], GGML_TYPES[kind][0]) for kind in self.kinds]
        return {
            "key_shape": [1, self.heads, length, self.head_dims[_KEY]],
            "value_shape": [1, self.heads, length, self.head_dims[_VALUE]],
            "dtype": "+".join(dict.fromkeys(names)),
            "stored_bytes": length * (self._row_bytes(_KEY) + self._row_bytes(_VALUE)),
        }

    def _row_bytes(self, part: int) -> int:
        _, block, size = GGML_TYPES[self.kinds[part]]
        return self.heads * self.head_dims[part] // block * size

    def _snapshot(self, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Keys and values of each layer in float32, (length, heads x head_dim), in the order of the positions.

        The saved state ends with: whether values are transposed, the number of layers, then keys and then values of each layer
        behind their type and size (llama.cpp, ``llama_kv_cache::state_write_data``). All of it is compared with what must be there.
        """
        context = self.decoder.context
        size = self.library.llama_state_seq_get_size(context, 0)
        buffer = (ctypes.c_uint8 * size)()
        self.library.llama_state_seq_get_data(context, buffer, size, 0)
        data = bytes(buffer)
        sizes = [length * self._row_bytes(part) for part in (_KEY, _VALUE)]
        start = len(data) - 8 - self.layers * (24 + sum(sizes))
        if start < 0:
            raise _unknown(f"{len(data)} bytes for {length} tokens")
        transposed, layers = struct.unpack_from("<II", data, start)
        if transposed > 1 or layers != self.layers:
            raise _unknown(f"{layers} layers instead of {self.layers}")
        position, parts = start + 8, []
        for part in (_KEY, _VALUE):
            wanted = self._header(part, transposed=bool(transposed) and part == _VALUE)
            found = []
            for _ in range(self.layers):
                if data[position : position + 12] != wanted:
                    raise _unknown(f"{data[position : position + 12].hex()} instead of {wanted.hex()}")
                position += 12
                piece = data[position : position + sizes[part]]
                found.append(self._numbers(piece, part, length, transposed=bool(transposed) and part == _VALUE))
                position += sizes[part]
            parts.append(found)
        return list(zip(*parts, strict=True))

    def _header(self, part: int, *, transposed: bool) -> bytes:
        kind = self.kinds[part]
        if transposed:
            return struct.pack("<iII", kind, GGML_TYPES[kind][2], self.heads * self.head_dims[part])
        return struct.pack("<iQ", kind, self._row_bytes(part))

    def _numbers(self, data: bytes, part: int, length: int, *, transposed: bool) -> np.ndarray:
        numbers = _to_float32(data, GGML_TYPES[self.kinds[part]][0])
        return numbers.reshape(-1, length).T if transposed else numbers.reshape(length, -1)


def _to_float32(data: bytes, kind: str) -> np.ndarray:
    """The numbers that a tensor of type ``kind`` stands for.

    https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
    """
    if kind == "f32":
        return np.frombuffer(data, np.float32)
    if kind == "f16":
        return np.frombuffer(data, np.float16).astype(np.float32)
    if kind == "bf16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind not in _READABLE:
        raise UnsupportedError(f"a KV cache of type {kind} is not read here", f"use one of: {', '.join(_READABLE)}")
    size = 34 if kind == "q8_0" else 18
    blocks = np.frombuffer(data, np.uint8).reshape(-1, size)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == "q8_0":
        return (blocks[:, 2:].view(np.int8).astype(np.float32) * scales).ravel()
    halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return ((halves.astype(np.float32) - 8) * scales).ravel()


def _unknown(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"this llama.cpp saves its KV cache in a way that is not known here ({what})",
        "use another version of llama-cpp-python",
    )
