"""Which bytes a model stores: its parameters with their quantization state, and its buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Weight:
    """A named tensor of the model with everything that is stored for it.

    Attributes:
        name: As ``named_parameters`` or ``named_buffers`` has it.
        tensor: The tensor; of a model that is split over ranks, this rank's part.
        state: Tensors that its quantization adds; empty for a plain one.
        module: The module that owns it.
    """

    name: str
    tensor: torch.Tensor
    state: tuple[torch.Tensor, ...]
    module: Any


def weights(model: Any) -> Iterator[Weight]:
    """Every parameter once, tied ones by their first name, and every buffer that a checkpoint would hold (packed weights)."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, tensor in _own_weights(module):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                state = tuple(_quantization_state(module, tensor))
                yield Weight(f"{prefix}.{name}" if prefix else name, own_part(tensor), state, module)


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that may be split over ranks."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        part: torch.Tensor = tensor.to_local()
    return part


def tied(model: Any) -> list[list[str]]:
    """Pairs of names of one parameter: the one that ``weights`` gives first."""
    first: dict[int, str] = {}
    pairs = []
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if id(tensor) in first:
            pairs.append([first[id(tensor)], name])
        else:
            first[id(tensor)] = name
    return pairs


def other_buffers(model: Any) -> list[torch.Tensor]:
    """Buffers that no checkpoint holds: RoPE tables and masks."""
    return [
        tensor
        for module in model.modules()
        for name, tensor in module.named_buffers(recurse=False)
        if name in _not_in_checkpoint(module)
    ]


def _own_weights(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    for name, tensor in module.named_buffers(recurse=False):
        if name not in _not_in_checkpoint(module):
            yield name, tensor


def _not_in_checkpoint(module: Any) -> Collection[str]:
    names: Collection[str] = getattr(module, "_non_persistent_buffers_set", ())
    return names


def _quantization_state(module: Any, tensor: Any) -> Iterator[torch.Tensor]:
    """The tensors that bitsandbytes stores as attributes of a weight.

    4-bit: absmax, code, and for double quantization offset and the nested absmax and code. 8-bit: the row scales SCB, which
    move from the weight to ``module.state`` at the first use; CB is the weight itself.
    """
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        nested = getattr(state, "state2", None)
        candidates = [state.absmax, state.code, state.offset]
        candidates += [nested.absmax, nested.code, nested.offset] if nested is not None else []
        yield from (entry for entry in candidates if isinstance(entry, torch.Tensor))
    elif tensor.dtype == torch.int8:
        for holder in (tensor, getattr(module, "state", None)):
            if isinstance(scales := getattr(holder, "SCB", None), torch.Tensor):
                yield scales
                return


class StorageCount:
    """Bytes of tensors, each storage counted for the first tensor that uses it."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()

    def new_bytes(self, tensors: Iterable[torch.Tensor]) -> int:
        """Bytes of the storages among ``tensors`` that were not met before."""
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = (str(tensor.device), storage.data_ptr())
            if storage.nbytes() and key not in self._seen:
                self._seen.add(key)
                total += storage.nbytes()
        return total
