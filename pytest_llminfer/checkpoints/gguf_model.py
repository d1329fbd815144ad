"""GGUF files: what they hold, read with the standard library, and the configuration of the model in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.gguf import GgufFile, GgufTensor, read_gguf
from pytest_llminfer.checkpoints.gguf_mixtures import block_elements, stored_type, type_bytes
from pytest_llminfer.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GgufFile", "GgufTensor", "block_elements", "config_from_gguf", "read_gguf", "stored_type", "type_bytes"]

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
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
        raise UnsupportedError(
            f"{file.path} holds the architecture {architecture!r}", f"give a file of one of: {', '.join(_ARCHITECTURES)}"
        )
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
