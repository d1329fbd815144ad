"""What a live model's own quantized linears do to given numbers, and what its weights look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

_BINS = 16
_WIDEST = 4.0
"""Standard deviations on either side of the mean that a histogram shows; what lies beyond is counted in its outer bins."""


def round_trip(model: Any, values: np.ndarray, *, double_quantized: bool | None = None) -> dict[str, Any]:
    """``values`` (rows, columns) float32 through a linear of the same kind and settings as the model's first quantized one.

    Returns float32 ``values`` as that linear multiplies by them, ``format``, ``block_size`` (values that share a scale; 0: a row),
    ``state_bits`` (of scales and codebook, per value). ``double_quantized`` overrides whether the scales are quantized too.
    """
    layer = _first_quantized(model)
    weight = torch.from_numpy(values.copy())
    made = (
        _four_bits(layer, weight, double_quantized=double_quantized)
        if hasattr(layer.weight, "quant_state")
        else _eight_bits(weight)
    )
    made = made.to(layer.weight.device)
    with torch.inference_mode():
        read = made(torch.eye(weight.shape[1], device=layer.weight.device)).float().T.contiguous()
    state = getattr(made.weight, "quant_state", None)
    return {
        "values": read.cpu().numpy(),
        "format": state.quant_type if state is not None else "int8",
        "block_size": state.blocksize if state is not None else 0,
        "state_bits": 8 * _state_bytes(made) / weight.numel(),
    }


def codebook(model: Any) -> dict[str, Any]:
    """The 16 values that the model's 4-bit codes stand for, float32, and how often each is used over all its linears.

    Raises:
        UnsupportedError: the model is not quantized, or to 8 bits, which have no codebook.
    """
    counts = torch.zeros(16, dtype=torch.int64)
    code = None
    for layer in _quantized(model):
        state = getattr(layer.weight, "quant_state", None)
        if state is None:
            raise UnsupportedError("codes of 8 bits are evenly spaced: they have no codebook", "use quantization=nf4 or fp4")
        code = state.code.float().cpu()
        packed = layer.weight.data.view(torch.uint8).flatten().cpu()
        counts += torch.bincount(torch.cat([packed >> 4, packed & 15]).to(torch.int64), minlength=16)
    if code is None:
        raise UnsupportedError("no linear of this model is quantized", "use quantization=nf4 or fp4")
    return {"code": code.numpy(), "counts": counts.numpy()}


def against_checkpoint(model: Any, path: str) -> list[dict[str, Any]]:
    """Per linear of the decoder the relative RMS error of what it multiplies by, against the same weight at ``path``.

    Linears that are not quantized are among them: those have lost nothing.
    """
    found = []
    with torch.inference_mode():
        for name, layer in _linears(model):
            original = _stored(path, f"{name}.weight").to(layer.weight.device).float()
            read = _multiplied_by(layer)
            if read.shape != original.shape:  # GPT-2 stores (in, out)
                original = original.T
            found.append({"name": name, "error": float((read - original).norm() / original.norm())})
    return found


def weights(model: Any) -> list[dict[str, Any]]:
    """Mean, standard deviation, excess kurtosis and a histogram of the weights of every linear that holds floating-point numbers.

    Of the decoder: embeddings and the output matrix, which no format here quantizes, are not among them.

    histogram: counts in 16 bins over four standard deviations on either side of the mean.
    """
    found = []
    for name, layer in _linears(model):
        weight = layer.weight
        if not weight.is_floating_point():
            continue
        numbers = weight.detach().double().flatten()
        mean, spread = numbers.mean(), numbers.std(correction=0)
        scaled = (numbers - mean) / spread
        histogram = torch.histc(scaled.clamp(-_WIDEST, _WIDEST).float().cpu(), bins=_BINS, min=-_WIDEST, max=_WIDEST)
        found.append(
            {
                "name": name,
                "values": numbers.numel(),
                "mean": float(mean),
                "spread": float(spread),
                "kurtosis": float((scaled**4).mean() - 3),
                "histogram": histogram.to(torch.int64).numpy(),
            }
        )
    return found


def casts(model: Any, numbers: np.ndarray, names: Sequence[str]) -> Mapping[str, np.ndarray]:
    """float32 ``numbers`` cast to each floating-point format and back, on the model's device."""
    given = torch.from_numpy(numbers.copy()).to(model.device)
    return {name: given.to(getattr(torch, name)).float().cpu().numpy() for name in names}


def _quantized(model: Any) -> Iterator[Any]:
    return (layer for layer in model.modules() if _is_quantized(layer))


def _is_quantized(layer: Any) -> bool:
    return type(layer).__name__ in ("Linear4bit", "Linear8bitLt")


def _linears(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of every linear but the output matrix; GPT-2's are of a class of their own."""
    output = model.get_output_embeddings()
    for name, layer in model.named_modules():
        if layer is not output and (isinstance(layer, torch.nn.Linear) or type(layer).__name__ == "Conv1D"):
            yield name, layer


def _first_quantized(model: Any) -> Any:
    layer = next(_quantized(model), None)
    if layer is None:
        raise UnsupportedError("no linear of this model is quantized by bitsandbytes", "use quantization=int8, nf4 or fp4")
    return layer


def _four_bits(layer: Any, weight: torch.Tensor, *, double_quantized: bool | None) -> Any:
    import bitsandbytes

    state = layer.weight.quant_state
    made = bitsandbytes.nn.Linear4bit(
        weight.shape[1],
        weight.shape[0],
        bias=False,
        compute_dtype=torch.float32,
        compress_statistics=state.nested if double_quantized is None else double_quantized,
        quant_type=state.quant_type,
    )
    made.weight = bitsandbytes.nn.Params4bit(
        weight,
        requires_grad=False,
        blocksize=state.blocksize,
        compress_statistics=made.weight.compress_statistics,
        quant_type=state.quant_type,
        module=made,
    )
    made.support_avx512bf16_for_cpu = False
    return made


def _eight_bits(weight: torch.Tensor) -> Any:
    import bitsandbytes

    made = bitsandbytes.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False, threshold=0.0)
    made.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return made


def _state_bytes(layer: Any) -> int:
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        # Its first use moves the scales from the weight to the layer.
        return int(layer.state.SCB.nbytes)
    nested = state.state2
    tensors = [state.absmax, state.code, *((nested.absmax, nested.code) if nested is not None else ())]
    return sum(int(tensor.nbytes) for tensor in tensors)


def _multiplied_by(layer: Any) -> torch.Tensor:
    """float32 (out, in): what a linear multiplies by, as it shows on the rows of the identity."""
    if not _is_quantized(layer):
        weight: torch.Tensor = layer.weight.float()
        return weight if isinstance(layer, torch.nn.Linear) else weight.T
    # 8-bit linears round their input to 16 bits, which leaves zeros and ones as they are.
    dtype = torch.float32 if type(layer).__name__ == "Linear4bit" else torch.float16
    rows = torch.eye(layer.in_features, device=layer.weight.device, dtype=dtype)
    bias, layer.bias = layer.bias, None
    try:
        return layer(rows).float().T
    finally:
        layer.bias = bias


def _stored(path: str, name: str) -> torch.Tensor:
    import json
    from pathlib import Path

    from safetensors import safe_open

    folder = Path(path)
    index = folder / "model.safetensors.index.json"
    file = json.loads(index.read_text())["weight_map"][name] if index.is_file() else "model.safetensors"
    with safe_open(folder / file, framework="pt") as tensors:
        return tensors.get_tensor(name)
