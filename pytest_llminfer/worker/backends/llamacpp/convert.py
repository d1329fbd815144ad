"""A model in transformers' format, written as a GGUF file with the package gguf and NumPy."""

from __future__ import annotations

import importlib
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.checkpoints.gguf import read_gguf
from pytest_llminfer.checkpoints.gguf_names import permuted_heads, to_gguf
from pytest_llminfer.errors import BadInputError, EngineError
from pytest_llminfer.worker.backends.llamacpp.source import Source, to_bf16

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pytest_llminfer.worker.backends.llamacpp.architecture import Architecture
    from pytest_llminfer.worker.backends.llamacpp.tokenizer import Vocabulary

CONVERTER_VERSION = 1
"""Goes up with every change of what is written: a cached file of another version is not used."""

GGML_NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_FILE_TYPES = {"fp32": 0, "fp16": 1, "bf16": 32}
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_NO_VOCABULARY = "no_vocab"


def write_gguf(
    path: Path,
    architecture: Architecture,
    source: Source,
    vocabulary: Vocabulary | None,
    tokens: Mapping[str, int],
    *,
    dtype: str,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write every tensor in ``dtype``, norms and biases in float32, and read the file back.

    tokens: ``eos`` and ``pad`` to their ids, where the model has them. The same input gives the same bytes.

    Raises:
        BadInputError: a number that ``dtype`` cannot hold. EngineError: what was read back is not what was written.
    """
    gguf = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, architecture.name)
    _add_metadata(writer, architecture, dtype)
    _add_vocabulary(writer, vocabulary, tokens)
    entries = list(_tensors(architecture, dtype))
    for _, target, shape, kind in entries:
        size = math.prod(shape) * _ITEM_BYTES[kind]
        writer.add_tensor_info(target, shape, np.dtype(np.uint16), size, raw_dtype=getattr(gguf.GGMLQuantizationType, kind))
    checksums = {}
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, (name, target, _, kind) in enumerate(entries):
            values = _rope_factors(architecture) if name is None else _arranged(source.read(name), target, architecture)
            data = np.ascontiguousarray(_cast(values, kind, target))
            checksums[target] = zlib.crc32(data.tobytes())
            writer.write_tensor_data(data)
            progress("converting", number + 1, len(entries))
    finally:
        writer.close()
    verify(path, checksums)


def verify(path: Path, checksums: Mapping[str, int]) -> None:
    """Read the file back: every tensor is there, whole, with the bytes that were written.

    Raises:
        EngineError: a tensor is missing, or holds other bytes.
    """
    file = read_gguf(path)
    with path.open("rb") as stream:
        for tensor in file.tensors.values():
            stream.seek(tensor.offset)
            if checksums.get(tensor.name) != zlib.crc32(stream.read(tensor.stored_bytes)):
                raise EngineError(f"{tensor.name} read back from {path} is not what was written; look at the disk")
    if set(file.tensors) != set(checksums):
        raise EngineError(f"{path} does not hold the tensors that were written; look at the disk")


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from two halves to neighbouring pairs: transformers turns row i with i + half, llama.cpp 2i with 2i + 1."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _tensors(architecture: Architecture, dtype: str) -> Iterator[tuple[str | None, str, tuple[int, ...], str]]:
    """Name in transformers (None for what the configuration implies), name in GGUF, shape and type, in the order of the file."""
    if architecture.rope_scaling.get("rope_type") == "llama3":
        yield None, "rope_freqs.weight", (architecture.head_dim // 2,), "F32"
    for name, shape in architecture.shapes().items():
        target = to_gguf(name)
        if target is None:
            raise BadInputError(f"{name} has no name in GGUF")
        yield name, target, shape, GGML_NAMES[dtype] if len(shape) > 1 else "F32"


def _arranged(values: np.ndarray, target: str, architecture: Architecture) -> np.ndarray:
    heads = permuted_heads(architecture.name, target, heads=architecture.heads, kv_heads=architecture.kv_heads)
    return permute(values, heads) if heads else values


def _cast(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise BadInputError(f"{name} holds numbers that are not finite; fetch the weights again")
    if kind == "F32":
        return values.astype(np.float32, copy=False)
    if kind == "BF16":
        return to_bf16(np.ascontiguousarray(values))
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise BadInputError(f"{name} holds {float(np.abs(values).max()):g}, more than fp16 can; use dtype=bf16 or dtype=fp32")
    return half


def _add_metadata(writer: Any, architecture: Architecture, dtype: str) -> None:
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(2)
    writer.add_context_length(architecture.positions)
    writer.add_embedding_length(architecture.hidden)
    writer.add_block_count(architecture.layers)
    writer.add_feed_forward_length(architecture.intermediate)
    writer.add_head_count(architecture.heads)
    writer.add_head_count_kv(architecture.kv_heads)
    writer.add_key_length(architecture.head_dim)
    writer.add_value_length(architecture.head_dim)
    writer.add_layer_norm_rms_eps(architecture.norm_epsilon)
    writer.add_rope_freq_base(architecture.rope_theta)
    writer.add_rope_dimension_count(architecture.head_dim)
    writer.add_vocab_size(architecture.vocabulary)
    if architecture.rope_scaling.get("rope_type") == "linear":
        writer.add_string(f"{architecture.name}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(float(architecture.rope_scaling["factor"]))


def _add_vocabulary(writer: Any, vocabulary: Vocabulary | None, tokens: Mapping[str, int]) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model(_NO_VOCABULARY)
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_add_bos_token(value=False)
    if "eos" in tokens:
        writer.add_eos_token_id(tokens["eos"])
    if "pad" in tokens:
        writer.add_pad_token_id(tokens["pad"])
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _rope_factors(architecture: Architecture) -> np.ndarray:
    """What each rotary frequency is divided by in Llama 3.1: 1 for short wavelengths, ``factor`` for long ones, smooth between."""
    scaling = architecture.rope_scaling
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    exponents = np.arange(0, architecture.head_dim, 2, dtype=np.float64) / architecture.head_dim
    wavelengths = 2 * np.pi * architecture.rope_theta**exponents
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1 - smooth) / factor + smooth)).astype(np.float32)
