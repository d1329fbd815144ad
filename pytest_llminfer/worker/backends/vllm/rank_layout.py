"""How each parameter is stored in one of vLLM's ranks, repacked ones as they were before, and the bytes of all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.worker.backends.transformers.content import digest
from pytest_llminfer.worker.backends.transformers.storage import StorageCount, tied

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Weight", "report", "stored_bytes", "tied", "weights"]

_PACKERS = {"handler": "onednn", "packed_weight": "sgl", "zen_weight": "zentorch"}
"""What vLLM's CPU linears close over, to the library that holds their repacked weight."""
_KERNEL_OWNERS = ("quant_method", "scheme", "kernel", "fp8_linear")


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight as one rank stores it.

    Attributes:
        name: As vLLM names the parameter.
        shape: Of the matrix that it stands for: (out, in) of this rank's part of a linear.
        dtype: Of the stored tensor, or of the matrix that a library has repacked.
        tensor: The stored tensor; None where a library of the CPU holds the weight, repacked.
        state: Tensors that its quantization adds; empty for none.
        packing: The format, as vLLM or the library that repacked it names it; empty for a plain tensor.
        block_size: Weights that share one scale; None where the format has no such blocks.
        double_quantized: Whether the scales are quantized too; None where that has no meaning.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor: torch.Tensor | None
    state: tuple[torch.Tensor, ...] = ()
    packing: str = ""
    block_size: int | None = None
    double_quantized: bool | None = None


def weights(model: Any) -> Iterator[Weight]:
    """Every weight once, tied ones by their first name."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, tensor in module._parameters.items():  # noqa: SLF001 - named_parameters leaves out the weight that is None
            if tensor is not None and id(tensor) in seen:
                continue
            weight = _weight(f"{prefix}.{name}" if prefix else name, name, tensor, module)
            if weight is not None:
                seen.add(id(tensor))
                yield weight


def report(model: Any, *, hashed: bool = False) -> dict[str, Any]:
    """``{"parameters": [fields of Parameter, …], "tied": [[name, name], …]}`` of this rank.

    hashed: with the hash of each weight's content that a tensor shows.
    """
    count = StorageCount()
    return {
        "parameters": [
            _parameter(weight, count) | ({"content": digest(weight.tensor)} if hashed and weight.tensor is not None else {})
            for weight in weights(model)
        ],
        "tied": tied(model),
    }


def stored_bytes(model: Any, count: StorageCount) -> int:
    """Bytes of all weights with their quantization state, each storage once."""
    return sum(_own_bytes(weight, count) + count.new_bytes(weight.state) for weight in weights(model))


def repacked_bytes(model: Any) -> int:
    """Bytes of the weights that no tensor holds."""
    return sum(_matrix_bytes(weight) for weight in weights(model) if weight.tensor is None)


def _own_bytes(weight: Weight, count: StorageCount) -> int:
    return _matrix_bytes(weight) if weight.tensor is None else count.new_bytes([weight.tensor])


def _matrix_bytes(weight: Weight) -> int:
    return math.prod(weight.shape) * int(weight.dtype.itemsize)


def _parameter(weight: Weight, count: StorageCount) -> dict[str, Any]:
    own, state = _own_bytes(weight, count), count.new_bytes(weight.state)
    return {
        "name": weight.name,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
        "stored_shape": list(weight.shape if weight.tensor is None else weight.tensor.shape),
        "stored_bytes": own + state,
        "state_bytes": state,
        "packing": weight.packing,
        "block_size": weight.block_size,
        "double_quantized": weight.double_quantized,
        "device": "cpu" if weight.tensor is None else weight.tensor.device.type,
    }


def _weight(full_name: str, name: str, tensor: torch.Tensor | None, module: Any) -> Weight | None:
    if name == "weight" and (tensor is None or not tensor.numel()):
        return _repacked(full_name, tensor, module)
    if tensor is None:
        return None
    states = getattr(tensor, "bnb_quant_state", None)
    if states:
        return _bitsandbytes(full_name, tensor, list(states.values()))
    packing = _method_name(module) if name != "bias" else ""
    return Weight(full_name, tuple(tensor.shape), tensor.dtype, tensor, packing=packing)


def _repacked(full_name: str, tensor: torch.Tensor | None, module: Any) -> Weight | None:
    """A linear whose weight was handed to a library: its sizes are read off what the library gave back."""
    for cell, held in _closure(getattr(module, "cpu_linear", None)):
        if cell in _PACKERS:
            if isinstance(held, torch.Tensor):
                return Weight(full_name, _sizes(module), held.dtype, held, packing=_PACKERS[cell])
            dtype = tensor.dtype if tensor is not None else module.params_dtype
            return Weight(full_name, (int(held.n), int(held.k)), dtype, None, packing=_PACKERS[cell])
    handler = _kernel_handler(module)
    if handler is not None:
        return Weight(full_name, (int(handler.n), int(handler.k)), torch.int8, None, packing="onednn")
    if tensor is None:
        return None
    return Weight(full_name, _sizes(module), getattr(module, "params_dtype", tensor.dtype), None, packing="unknown")


def _closure(function: Any) -> list[tuple[str, Any]]:
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells:
        return []
    return [(name, cell.cell_contents) for name, cell in zip(code.co_freevars, cells, strict=True)]


def _kernel_handler(module: Any) -> Any:
    """The handle of an int8 matrix that oneDNN holds, wherever this version keeps its kernel."""
    holders = [module]
    for _ in range(len(_KERNEL_OWNERS) - 1):
        holders = [getattr(holder, name) for holder in holders for name in _KERNEL_OWNERS if hasattr(holder, name)]
        for holder in holders:
            if (handler := getattr(holder, "dnnl_handler", None)) is not None:
                return handler
    return None


def _sizes(module: Any) -> tuple[int, ...]:
    """Rows and columns of a linear, of this rank's part of it."""
    return tuple(
        int(getattr(module, f"{side}_size_per_partition", 0) or getattr(module, f"{side}_size", 0)) for side in ("output", "input")
    )


def _method_name(module: Any) -> str:
    """The quantization's name, as vLLM calls it; "" where the layer is not quantized."""
    method = getattr(module, "quant_method", None)
    config = getattr(method, "quant_config", None) or getattr(method, "quantization_config", None)
    name = getattr(config, "get_name", None)
    return str(name()) if callable(name) else ""


def _bitsandbytes(full_name: str, tensor: torch.Tensor, states: list[Any]) -> Weight:
    """A packed 4-bit weight, fused of several: each has a state of its own."""
    nested = [state.state2 for state in states if getattr(state, "nested", False)]
    kept = [held for state in (*states, *nested) for held in (state.absmax, state.code, getattr(state, "offset", None))]
    rows = sum(int(state.shape[0]) for state in states)
    return Weight(
        full_name,
        (rows, *(int(size) for size in states[0].shape[1:])),
        tensor.data.dtype,
        tensor,
        state=tuple(held for held in kept if isinstance(held, torch.Tensor)),
        packing=str(states[0].quant_type),
        block_size=int(states[0].blocksize),
        double_quantized=bool(nested),
    )
