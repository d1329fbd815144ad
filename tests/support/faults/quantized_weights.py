"""Faults of quantized weights that a live transformers model is given in its worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def leave_a_layer_alone(model: Any) -> None:
    """The up projection of layer 2 computes with its weight in bf16, as a module that was skipped does."""
    import torch

    mlp = model.model.layers[2].mlp
    quantized = mlp.up_proj
    plain = torch.nn.Linear(quantized.in_features, quantized.out_features, bias=False, dtype=torch.bfloat16)
    plain.weight.data = _checkpoint(model, "model.layers.2.mlp.up_proj.weight").bfloat16()
    mlp.up_proj = plain


def never_quantized(model: Any) -> None:
    """The down projection of layer 2 is a plain linear, as a module that a loader skipped is."""
    import torch

    mlp = model.model.layers[2].mlp
    plain = torch.nn.Linear(mlp.down_proj.in_features, mlp.down_proj.out_features, bias=False, dtype=torch.bfloat16)
    plain.weight.data = mlp.down_proj.weight.data
    mlp.down_proj = plain


def scale_a_layer(model: Any) -> None:
    """The scales of layer 1's value projection are doubled."""
    state = model.model.layers[1].self_attn.v_proj.weight.quant_state
    state.offset = state.offset * 2 if state.offset is not None else None
    state.absmax = state.absmax if state.nested else state.absmax * 2
    if state.nested:
        state.state2.absmax = state.state2.absmax * 2


def swap_codes(model: Any) -> None:
    """The codebook of every 4-bit weight is evenly spaced."""
    import torch

    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            state.code = torch.linspace(-1, 1, 16)


def larger_blocks(model: Any) -> None:
    """The first quantized linear declares blocks of 128."""
    next(module for module in model.modules() if type(module).__name__ == "Linear4bit").weight.quant_state.blocksize = 128


def flush_subnormals(_model: Any) -> None:
    """Casts to fp16 lose what is below its least normal number."""
    _cast(lambda torch, tensor, dtype: tensor * (tensor.abs() >= 2.0**-14) if dtype is torch.float16 else tensor)


def round_towards_zero(_model: Any) -> None:
    """Casts to bf16 cut the lower bits off."""

    def cut(torch: Any, tensor: Any, dtype: Any) -> Any:
        return (tensor.view(torch.int32) & -0x10000).view(torch.float32) if dtype is torch.bfloat16 else tensor

    _cast(cut)


def _cast(change: Callable[..., Any]) -> None:
    """Change what is cast from float32 to another dtype."""
    import torch

    to = torch.Tensor.to

    def faulty(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.dtype) and tensor.dtype is torch.float32:
            tensor = change(torch, tensor, args[0])
        return to(tensor, *args, **kwargs)

    torch.Tensor.to = faulty


def freeze_a_norm(model: Any) -> None:
    """The last norm takes no part in training."""
    import torch

    norm = model.model.norm

    def frozen(hidden: Any) -> Any:
        variance = hidden.float().pow(2).mean(-1, keepdim=True)
        return norm.weight.detach() * (hidden.float() * torch.rsqrt(variance + norm.variance_epsilon)).to(hidden.dtype)

    norm.forward = frozen


def lose_a_norm(model: Any) -> None:
    """What is saved of the last norm is all ones."""
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    save = model.save_pretrained

    def faulty(folder: Any, **kwargs: Any) -> None:
        save(folder, **kwargs)
        for file in Path(folder).glob("*.safetensors"):
            tensors = load_file(file)
            if "model.norm.weight" in tensors:
                tensors["model.norm.weight"].fill_(1)
                save_file(tensors, file, metadata={"format": "pt"})

    model.save_pretrained = faulty


def save_in_every_format(_model: Any, path: str, folder: str) -> list[str]:
    """No fault: the checkpoint at ``path`` in each format of bitsandbytes, as save_pretrained writes it; names of the folders."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    formats: dict[str, dict[str, Any]] = {
        "int8": {"load_in_8bit": True},
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    }
    for name, settings in formats.items():
        loaded = AutoModelForCausalLM.from_pretrained(
            path, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.bfloat16, device_map="cpu"
        )
        loaded.save_pretrained(f"{folder}/{name}")
    return list(formats)


def _checkpoint(model: Any, name: str) -> Any:
    from pathlib import Path

    from safetensors import safe_open

    with safe_open(str(Path(model.config._name_or_path) / "model.safetensors"), framework="pt") as tensors:
        return tensors.get_tensor(name)
