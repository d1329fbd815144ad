"""How each parameter is stored: dtype, packing, bytes with quantization state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.worker.backends.transformers import content, storage

if TYPE_CHECKING:
    from pytest_llminfer.worker.backends.transformers.storage import Weight


def report(model: Any, *, hashed: bool = False) -> dict[str, Any]:
    """``{"parameters": [fields of Parameter, …], "tied": [[name, name], …]}``.

    Each weight is given what is stored for it. bitsandbytes 0.50 keeps a copy of its codebooks with every weight; were one shared,
    it would count for the first weight that uses it, so that the bytes of all parameters add up to what is stored.
    hashed: with the hash of each weight's content, to tell the shards of two ranks apart.
    """
    count = storage.StorageCount()
    return {
        "parameters": [
            _parameter(weight, count) | ({"content": content.digest(weight.tensor)} if hashed else {})
            for weight in storage.weights(model)
        ],
        "tied": storage.tied(model),
    }


def _parameter(weight: Weight, count: storage.StorageCount) -> dict[str, Any]:
    tensor_bytes = count.new_bytes([weight.tensor])
    state = [(str(tensor.dtype).removeprefix("torch."), count.new_bytes([tensor])) for tensor in weight.state]
    state_bytes = sum(size for _, size in state)
    quant_state = getattr(weight.tensor, "quant_state", None)
    fields: dict[str, Any] = {
        "name": weight.name,
        "dtype": str(weight.tensor.dtype).removeprefix("torch."),
        "shape": list(weight.tensor.shape),
        "stored_shape": list(weight.tensor.shape),
        "stored_bytes": tensor_bytes + state_bytes,
        "state_bytes": state_bytes,
        "state": state,
        "device": weight.tensor.device.type,
    }
    if quant_state is not None:
        nested = getattr(quant_state, "state2", None) is not None and quant_state.nested
        fields |= {
            "shape": list(quant_state.shape),
            "packing": quant_state.quant_type,
            "block_size": quant_state.blocksize,
            "double_quantized": nested,
        }
    elif weight.tensor.dtype == torch.int8 and weight.state:
        fields["packing"] = "int8"
    return fields
