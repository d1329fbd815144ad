"""Where the numbers of a conversion come from: the safetensors files of a model, or a generator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pytest_llminfer.checkpoints.safetensors import StoredTensor, read_checkpoint
from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llminfer.worker.backends.llamacpp.architecture import Architecture

_SEED = 20_25
_NAMED = 3
_IGNORED = "rotary_emb.inv_freq"


class Source(Protocol):
    """Gives the tensors of a model by their transformers names."""

    def read(self, name: str) -> np.ndarray:
        """The tensor in float32."""


class CheckpointSource:
    """The tensors of safetensors files, which must be exactly those of the architecture."""

    def __init__(self, folder: Path, architecture: Architecture) -> None:
        self._tensors = {name: tensor for name, tensor in read_checkpoint(folder).items() if not name.endswith(_IGNORED)}
        shapes = architecture.shapes()
        if architecture.tied:
            self._tensors.pop("lm_head.weight", None)
        if missing := [name for name in shapes if name not in self._tensors]:
            raise BadInputError(f"the weights of {folder} lack {_some(missing)}; the configuration and the files do not match")
        if extra := sorted(set(self._tensors) - set(shapes)):
            raise BadInputError(f"the weights of {folder} hold {_some(extra)}, for which a GGUF file of this model has no place")
        for name, shape in shapes.items():
            if self._tensors[name].shape != shape:
                raise BadInputError(
                    f"{name} of {folder} has the shape {self._tensors[name].shape}; the configuration implies {shape}"
                )

    def read(self, name: str) -> np.ndarray:
        """The tensor in float32, whatever it is stored in."""
        return read_tensor(self._tensors[name])


class DummySource:
    """Matrices normal with the configuration's initializer_range, norms 1, biases 0; the same at every call and in any order."""

    def __init__(self, architecture: Architecture) -> None:
        self._shapes = architecture.shapes()
        self._numbers = {name: number for number, name in enumerate(self._shapes)}
        self._scale = architecture.initializer_range

    def read(self, name: str) -> np.ndarray:
        """The tensor in float32."""
        shape = self._shapes[name]
        if "norm" in name:
            return np.ones(shape, np.float32)
        if name.endswith(".bias"):
            return np.zeros(shape, np.float32)
        generator = np.random.default_rng([_SEED, self._numbers[name]])
        return generator.standard_normal(shape, np.float32) * np.float32(self._scale)


def read_tensor(tensor: StoredTensor) -> np.ndarray:
    """One tensor of a safetensors file in float32; bf16 is the upper half of a float32.

    Raises:
        BadInputError: another dtype than F32, F16 or BF16.
    """
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    if tensor.dtype not in kinds:
        raise BadInputError(f"{tensor.file} holds a tensor of type {tensor.dtype}; a conversion reads {', '.join(kinds)}")
    stored = np.fromfile(tensor.file, kinds[tensor.dtype], count=math.prod(tensor.shape), offset=tensor.offset).reshape(
        tensor.shape
    )
    if tensor.dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bf16, ties to even, as uint16."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
