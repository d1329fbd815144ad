"""Random weights of a configuration's shape, for memory and throughput without a checkpoint."""

from __future__ import annotations

from typing import Any

import torch

_SEED = 20_25
_OFFSETS = 1 << 20
_STRIDE = 7_919


def random_state_dict(model_class: Any, config: Any, dtype: torch.dtype, *, shared: bool) -> dict[str, torch.Tensor]:
    """A state dict: matrices normal with the configuration's initializer_range, norms 1, biases 0. The same at every call.

    shared: tensors are slices of one host buffer, so that a model that is copied to a GPU needs host memory for its
    largest tensor alone; otherwise each has a storage of its own.
    """
    with torch.device("meta"):
        skeleton = model_class(config)
    # A tied parameter appears once: the loader ties the other name to it.
    shapes = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
    norms = {
        f"{name}.weight"
        for name, module in skeleton.named_modules()
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None
    }
    largest = max(torch.Size(shape).numel() for shape in shapes.values())
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.empty(largest + _OFFSETS, dtype=dtype)
    noise.normal_(0.0, getattr(config, "initializer_range", 0.02), generator=generator)
    state = {}
    for number, (name, shape) in enumerate(shapes.items()):
        if name in norms:
            state[name] = torch.ones(shape, dtype=dtype)
        elif name.endswith(".bias"):
            state[name] = torch.zeros(shape, dtype=dtype)
        else:
            start = (number * _STRIDE) % _OFFSETS
            values = noise[start : start + torch.Size(shape).numel()].view(shape)
            state[name] = values if shared else values.clone()
    return state
