"""One optimizer step on a live model, and back: which parameters move, and which must not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


def one_step(model: Any, tokens: Sequence[int], rate: float = 0.05) -> dict[str, Any]:
    """A step of AdamW on one text, by every parameter that can have a gradient; the model is then as it was before.

    Its steps have about the size of ``rate`` whatever the gradient, so that none is lost in the rounding of a 16-bit parameter.

    Returns ``loss``; per parameter ``name``, ``quantized``, ``gradient`` (whether it got one that is not all zero),
    ``finite`` and ``moved`` (whether a bit of it changed).
    """
    parameters = dict(model.named_parameters())
    # Memory made under inference mode takes no part in autograd: what trains is a copy, put back afterwards.
    before = {name: parameter.data for name, parameter in parameters.items()}
    training = model.training
    trained = [name for name, parameter in parameters.items() if parameter.is_floating_point()]
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():
            for name in trained:
                parameters[name].data = before[name].clone()
                parameters[name].requires_grad_(requires_grad=True)
            ids = torch.tensor([list(tokens)], device=model.device)
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer = torch.optim.AdamW([parameters[name] for name in trained], lr=rate)
            found = [_seen(name, parameter) for name, parameter in parameters.items()]
            bits = {name: _bits(parameter.data).clone() for name, parameter in parameters.items()}
            optimizer.step()
            for entry in found:
                entry["moved"] = not torch.equal(bits[entry["name"]], _bits(parameters[entry["name"]].data))
    finally:
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(requires_grad=False)
            if name in trained:
                parameter.data = before[name]
        model.train(training)
    return {"loss": float(loss.detach()), "parameters": found}


def _seen(name: str, parameter: torch.Tensor) -> dict[str, Any]:
    gradient = parameter.grad
    return {
        "name": name,
        "quantized": not parameter.is_floating_point(),
        "gradient": gradient is not None and bool(gradient.count_nonzero()),
        "finite": gradient is None or bool(gradient.isfinite().all()),
    }


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)
