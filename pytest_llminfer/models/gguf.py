"""GGUF files: what they hold, read with the standard library, and the configuration of the model in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.worker.backends.llamacpp.gguf_file import GGML_TYPES, GgufFile, GgufTensor, read_gguf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["GgufFile", "GgufTensor", "block_elements", "config_from_gguf", "read_gguf", "stored_type", "type_bytes"]

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_BLOCKS = {name: (block, size) for name, block, size in GGML_TYPES.values()}
_ROPE_FACTOR = "rope_freqs.weight"


def config_from_gguf(file: GgufFile) -> dict[str, Any]:
    """The fields of a config.json that the shape, the tokens and the end of a generation depend on.

    ``dtype`` is there where the embedding is stored unquantized.

    Raises:
        UnsupportedError: an architecture whose weights are not known here.
        BadInputError: one of its sizes is missing.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedError(f"{file.path} holds the architecture {architecture!r}; known: {', '.join(_ARCHITECTURES)}")
    hidden, heads = _size(file, f"{architecture}.embedding_length"), _size(file, f"{architecture}.attention.head_count")
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_size": hidden,
        "head_dim": file.metadata.get(f"{architecture}.attention.key_length", hidden // heads),
        "intermediate_size": _size(file, f"{architecture}.feed_forward_length"),
        "max_position_embeddings": _size(file, f"{architecture}.context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": _size(file, f"{architecture}.block_count"),
        "num_key_value_heads": file.metadata.get(f"{architecture}.attention.head_count_kv", heads),
        "rms_norm_eps": file.metadata.get(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": file.metadata.get(f"{architecture}.rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(architecture, file),
        "attention_bias": architecture == "llama" and "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": architecture == "llama" and "blk.0.ffn_up.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": _vocabulary(file, hidden),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    dtype = _DTYPES.get(file.tensors["token_embd.weight"].ggml_type)
    return {**config, "dtype": dtype, "torch_dtype": dtype} if dtype else config


def _size(file: GgufFile, key: str) -> int:
    value = file.metadata.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInputError(f"{file.path} needs {key} as a positive whole number, got {value!r}; convert the model again")
    return value


def _vocabulary(file: GgufFile, hidden: int) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != hidden:  # noqa: PLR2004 - a matrix
        raise BadInputError(f"{file.path} has no tensor token_embd.weight of shape (vocabulary, {hidden}); convert the model again")
    return embedding.shape[0]


def _rope_scaling(architecture: str, file: GgufFile) -> Mapping[str, Any] | None:
    kind = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind != "none":
        return {"rope_type": kind, "factor": file.metadata.get(f"{architecture}.rope.scaling.factor")}
    return {"rope_type": "llama3"} if _ROPE_FACTOR in file.tensors else None


MIXTURES: dict[str, tuple[str, str]] = {"q8_0": ("q8_0", "q8_0"), "q4_0": ("q4_0", "q6_k"), "q4_k_m": ("q4_k", "q6_k")}
"""Quantization → type of matrices, type of the output matrix (of the embedding where that is the output matrix too)."""

_WIDER = {"q4_k": "q5_0", "q6_k": "q8_0"}
"""What takes the place of a type whose blocks do not fit a row."""


def stored_type(name: str, shape: Sequence[int], *, quantization: str, dtype: str, layers: int, tied: bool) -> str:
    """The ggml type in which llama.cpp stores a weight of a Llama-like model.

    name: in transformers. dtype: ggml's word for the model's own (f32, f16, bf16), taken by matrices that are not quantized;
    norms and biases are always f32. q4_k_m: v_proj and down_proj are wider in the first eighth of the layers, in the last,
    and in every third between (``llama_model_quantize`` of llama.cpp; read from files of 1 to 32 layers).

    Raises:
        UnsupportedError: a quantization whose mixture is not known here.
    """
    if len(shape) == 1:
        return "f32"
    if quantization == "none":
        return dtype
    if quantization not in MIXTURES:
        raise UnsupportedError(f"how llama.cpp stores quantization {quantization!r} is not known here")
    usual, output = MIXTURES[quantization]
    chosen = output if name == ("model.embed_tokens.weight" if tied else "lm_head.weight") else usual
    if (
        quantization == "q4_k_m"
        and name.endswith(("v_proj.weight", "down_proj.weight"))
        and _is_wider(int(name.split(".")[2]), layers)
    ):
        chosen = "q6_k"
    return chosen if shape[-1] % _BLOCKS[chosen][0] == 0 else _WIDER[chosen]


def type_bytes(ggml_type: str, elements: int) -> int:
    """Bytes of ``elements`` weights in whole blocks, scales included."""
    block, size = _BLOCKS[ggml_type]
    return elements // block * size


def block_elements(ggml_type: str) -> int:
    """Elements of a block; 1 where nothing is packed."""
    return _BLOCKS[ggml_type][0]


def _is_wider(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2  # noqa: PLR2004 - the third of three
