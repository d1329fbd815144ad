"""What transformers and GGUF call the same tensors of a Llama-like model, and which rows GGUF keeps in another order."""

from __future__ import annotations

import re

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""``model_type`` of a config.json to ``general.architecture`` of a GGUF file."""

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP_BACK = {value: key for key, value in _TOP.items()}
_LAYER_BACK = {value: key for key, value in _LAYER.items()}
_TRANSFORMERS = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_GGUF = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")


def to_gguf(name: str) -> str | None:
    """The GGUF name of a tensor of transformers; None where there is none."""
    if (found := _TRANSFORMERS.fullmatch(name)) is not None:
        inner = _LAYER.get(found[2])
        return f"blk.{found[1]}.{inner}.{found[3]}" if inner else None
    stem, _, kind = name.rpartition(".")
    return f"{_TOP[stem]}.{kind}" if stem in _TOP else None


def to_transformers(name: str) -> str:
    """The transformers name of a GGUF tensor; the name itself where there is none (``rope_freqs.weight``)."""
    if (found := _GGUF.fullmatch(name)) is not None and found[2] in _LAYER_BACK:
        return f"model.layers.{found[1]}.{_LAYER_BACK[found[2]]}.{found[3]}"
    stem, _, kind = name.rpartition(".")
    return f"{_TOP_BACK[stem]}.{kind}" if stem in _TOP_BACK else name


def permuted_heads(architecture: str, name: str, *, heads: int, kv_heads: int) -> int:
    """How many heads' rows of the GGUF tensor ``name`` stand in another order than in transformers; 0 for none.

    The architecture llama turns neighbouring elements (2i, 2i+1) of a head where transformers turns (i, i + half).
    """
    if architecture != "llama":
        return 0
    return {"attn_q": heads, "attn_k": kv_heads}.get(name.split(".")[2], 0) if name.startswith("blk.") else 0
