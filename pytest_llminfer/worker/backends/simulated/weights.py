"""The weights of a Llama as float32 arrays: read from safetensors, or random."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.checkpoints.safetensors import read_checkpoint
from pytest_llminfer.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llminfer.checkpoints.safetensors import StoredTensor
    from pytest_llminfer.worker.backends.simulated.shape import Shape

Weights = dict[str, np.ndarray]
_DUMMY_STD = 0.02


def read_weights(folder: Path, shape: Shape) -> Weights:
    """Every weight that the shape asks for, in its order; others in the files are an error, like missing ones.

    Raises:
        BadInputError: a weight is missing, surplus or of another shape, or a file is damaged.
        UnsupportedError: another dtype than F32, F16 or BF16.
    """
    stored = read_checkpoint(folder)
    expected = shape.parameter_shapes()
    missing = [name for name in expected if name not in stored]
    surplus = [name for name in stored if name not in expected]
    if missing or surplus:
        found = "lack " + ", ".join(missing[:3]) if missing else "hold the unexpected " + ", ".join(surplus[:3])
        raise BadInputError(f"the weights in {folder} {found}; they do not belong to its config.json")
    for name, dimensions in expected.items():
        if stored[name].shape != dimensions:
            raise BadInputError(f"{name} in {folder} has shape {stored[name].shape}, config.json says {dimensions}")
    return {name: _read(name, stored[name]) for name in expected}


def _read(name: str, tensor: StoredTensor) -> np.ndarray:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        data = stream.read(tensor.stored_bytes)
    if tensor.dtype == "BF16":
        # A bfloat16 is the upper half of the float32 of the same value.
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif tensor.dtype in ("F32", "F16"):
        values = np.frombuffer(data, "<f4" if tensor.dtype == "F32" else "<f2").astype("<f4")
    else:
        raise UnsupportedError(
            f"{name} is stored as {tensor.dtype}", "the simulated engine reads F32, F16 and BF16: give weights in one of those"
        )
    return values.reshape(tensor.shape)


def random_weights(shape: Shape) -> Weights:
    """Matrices normal with deviation 0.02, norms 1. A tensor depends on its name and shape alone, so it is the same everywhere."""
    weights = {}
    for name, dimensions in shape.parameter_shapes().items():
        if name.endswith("norm.weight"):
            weights[name] = np.ones(dimensions, np.float32)
        else:
            generator = np.random.default_rng(zlib.crc32(name.encode()))
            weights[name] = (generator.standard_normal(dimensions, np.float32) * np.float32(_DUMMY_STD)).astype(np.float32)
    return weights
