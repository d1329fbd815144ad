"""A checkpoint on disk, by its headers: safetensors or GGUF. Nothing is loaded, and no engine is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints import gguf_layout
from pytest_llminfer.checkpoints.gguf_model import config_from_gguf, read_gguf
from pytest_llminfer.checkpoints.quantization_config import double_quantized, group_size, left_alone, stored_format, variant
from pytest_llminfer.checkpoints.safetensors import read_checkpoint, read_configuration, read_index, read_text
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.layout import Layout, Parameter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.checkpoints.safetensors import StoredTensor

__all__ = ["StoredModel", "declared_groups", "read_stored", "stored_format"]

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' words for dtypes to torch's."""

_PLAIN = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_OUTPUT = "lm_head.weight"
_INV_FREQ = "rotary_emb.inv_freq"
_NOTE = ".quant_state.bitsandbytes__"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A checkpoint on disk, as its headers and its configuration describe it.

    Attributes:
        path: The folder with config.json, or the .gguf file.
        holder: Whose storage rules apply, a key of ``rules.FILES``: ``checkpoint`` (safetensors) or ``gguf``.
        layout: Every stored tensor, without RoPE tables and notes.
        shape: The architecture that the configuration, or the file's metadata, declares.
        dtype: Of weights that are not quantized, in torch's words, as declared.
        quantization: In the words of a cell, as the checkpoint declares it; ``none`` without one.
        group_size: Inputs that share a scale, as declared; None where nothing is declared.
        double_quantized: Whether the scales of nf4 or fp4 are declared to be quantized too; None for other formats.
        files: Tensor name to the name of the file that holds it; empty for GGUF.
        index: Tensor name to file name as the index of a sharded checkpoint says; None without an index.
        notes: Weight name to what bitsandbytes notes of a 4-bit weight (quant_type, blocksize, dtype, shape …). It lies in tensors
            of bytes that are not parameters of ``layout``.
    """

    path: Path
    holder: str
    layout: Layout
    shape: ModelShape
    dtype: str
    quantization: str
    group_size: int | None
    double_quantized: bool | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    index: Mapping[str, str] | None = None
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_stored(path: str | Path) -> StoredModel:
    """The headers of a model folder or a .gguf file.

    Raises:
        BadInputError: nothing there, or damaged files. UnsupportedError: an architecture or a variant of a format that is not
        known here.
    """
    place = Path(path).expanduser()
    if place.suffix == ".gguf":
        return _read_gguf(place)
    config = read_configuration(str(place))
    folder = place if place.is_dir() else place.parent
    declared = config.get("quantization_config")
    refuse_variant(declared, str(folder))
    held = read_checkpoint(folder)
    notes = {name: _note(name, tensor) for name, tensor in held.items() if _NOTE in name}
    tensors = {name: tensor for name, tensor in held.items() if not name.endswith(_INV_FREQ) and name not in notes}
    shape = ModelShape.from_config(config)
    return StoredModel(
        path=folder,
        holder="checkpoint",
        layout=Layout(tuple(_parameter(name, tensor) for name, tensor in tensors.items()), _tied(shape, tensors)),
        shape=shape,
        dtype=_dtype(config),
        quantization=stored_format(declared),
        group_size=group_size(declared),
        double_quantized=double_quantized(declared),
        files={name: tensor.file.name for name, tensor in held.items()},
        index=read_index(folder),
        notes={name.partition(_NOTE)[0]: note for name, note in notes.items()},
    )


def refuse_variant(configuration: Mapping[str, Any] | None, what: str = "the model") -> None:
    """Accept a ``quantization_config`` that declares the usual variant of its format.

    Raises:
        UnsupportedError: a variant, whose bytes nothing here predicts: a visible skip.
    """
    if differs := variant(configuration):
        raise UnsupportedError(
            f"{what} is stored as {differs}, of which no layout is declared here",
            "give a checkpoint in the usual variant of its format",
        )


def declared_groups(config: Mapping[str, Any]) -> int | None:
    """The group size that a config.json declares, None where it declares none.

    Raises:
        UnsupportedError: a variant whose bytes are not predicted here, or layers that are left in 16 bits.
    """
    declared = config.get("quantization_config")
    refuse_variant(declared)
    if left := left_alone(declared):
        raise UnsupportedError(
            f"the model leaves {', '.join(left)} in 16 bits, which is not counted here",
            "give a checkpoint whose linears are all quantized",
        )
    return group_size(declared)


def _read_gguf(path: Path) -> StoredModel:
    file = read_gguf(path)
    return StoredModel(
        path=path,
        holder="gguf",
        layout=Layout.from_message(gguf_layout.report(file, "cpu")),
        shape=ModelShape.from_config(config_from_gguf(file)),
        dtype=_PLAIN.get(file.file_type, "float16"),
        quantization="none" if file.file_type in _PLAIN else file.file_type,
        group_size=None,
    )


def _parameter(name: str, tensor: StoredTensor) -> Parameter:
    return Parameter(name, _DTYPES.get(tensor.dtype, tensor.dtype.lower()), tensor.shape, tensor.shape, tensor.stored_bytes)


def _note(name: str, tensor: StoredTensor) -> Mapping[str, Any]:
    try:
        note = json.loads(read_text(tensor))
    except ValueError as error:
        raise BadInputError(f"{name} in {tensor.file} is no JSON ({error}); fetch it again") from error
    if not isinstance(note, dict):
        raise BadInputError(f"{name} in {tensor.file} is no note of a 4-bit weight: expected an object")
    return note


def _tied(shape: ModelShape, tensors: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """A tied output matrix is not stored: what shares its tensor is what the configuration says."""
    return tuple(pair for pair in shape.tied_pairs if _OUTPUT not in tensors)


def _dtype(config: Mapping[str, Any]) -> str:
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if named not in _PLAIN.values():
        raise BadInputError(f"config.json declares the dtype {named!r}; known: {', '.join(_PLAIN.values())}")
    return named
