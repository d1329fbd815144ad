"""How each tensor of the loaded file is stored, by its name in transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.gguf_names import to_transformers

if TYPE_CHECKING:
    from pytest_llminfer.checkpoints.gguf import GgufFile, GgufTensor

TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i8": "int8", "i32": "int32"}
_TIED = ["lm_head.weight", "model.embed_tokens.weight"]


def report(file: GgufFile, device: str) -> dict[str, Any]:
    """``{"parameters": [fields of Parameter, …], "tied": [[name, name], …]}``.

    A quantized tensor keeps its scales inside its blocks, so there is no state beside it: ``state_bytes`` is 0.
    """
    tied = "output.weight" not in file.tensors and "token_embd.weight" in file.tensors
    return {
        "parameters": [_parameter(tensor, device) for tensor in file.tensors.values()],
        "tied": [list(_TIED)] if tied else [],
    }


def _parameter(tensor: GgufTensor, device: str) -> dict[str, Any]:
    plain = tensor.ggml_type in TORCH_NAMES
    return {
        "name": to_transformers(tensor.name),
        "dtype": TORCH_NAMES.get(tensor.ggml_type, tensor.ggml_type),
        "shape": list(tensor.shape),
        "stored_shape": list(tensor.shape),
        "stored_bytes": tensor.stored_bytes,
        "state_bytes": 0,
        "packing": "" if plain else tensor.ggml_type,
        "block_size": None if plain else tensor.block_size,
        "device": device,
    }
