"""The sizes of a Llama-like model from its config.json, and every tensor that it must have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.gguf_names import ARCHITECTURES
from pytest_llminfer.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes from which the weights and the metadata of a GGUF file follow.

    Attributes:
        name: llama.cpp's name of the architecture.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer.
        head_dim: Elements of one head.
        intermediate: Width of the MLP.
        vocabulary: Rows of the embedding.
        positions: Longest sequence, ``max_position_embeddings``.
        norm_epsilon: Epsilon of the RMS norms.
        rope_theta: Base of the rotary positions.
        rope_scaling: What scales the rotary positions, with its ``rope_type``; empty for plain ones.
        tied: Whether the output matrix is the embedding.
        qkv_bias: Whether the projections to queries, keys and values have a bias.
        output_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the linears of the MLP have one.
        initializer_range: Standard deviation of dummy weights.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: dict[str, Any]
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    initializer_range: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a config.json.

        Raises:
            UnsupportedError: another architecture, or a variant of it that the converter does not write.
            BadInputError: a size is missing.
        """
        model_type = str(config.get("model_type", ""))
        if model_type not in ARCHITECTURES:
            raise UnsupportedError(
                f"models of type {model_type!r} are not converted to GGUF here (known: {', '.join(ARCHITECTURES)})",
                "give the path of a .gguf file instead",
            )
        _refuse_variants(config)
        rope, theta = _rope(config)
        heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
        biased = model_type == "llama" and bool(config.get("attention_bias", False))
        return cls(
            name=ARCHITECTURES[model_type],
            layers=_size(config, "num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=_size(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else heads,
            head_dim=_size(config, "head_dim") if config.get("head_dim") is not None else hidden // heads,
            intermediate=_size(config, "intermediate_size"),
            vocabulary=_size(config, "vocab_size"),
            positions=_size(config, "max_position_embeddings"),
            norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=rope,
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=model_type == "qwen2" or biased,
            output_bias=biased,
            mlp_bias=model_type == "llama" and bool(config.get("mlp_bias", False)),
            initializer_range=float(config.get("initializer_range", 0.02)),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor by its transformers name; a tied output matrix is left out."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            for name, rows, columns, bias in (
                ("self_attn.q_proj", queries, self.hidden, self.qkv_bias),
                ("self_attn.k_proj", keys, self.hidden, self.qkv_bias),
                ("self_attn.v_proj", keys, self.hidden, self.qkv_bias),
                ("self_attn.o_proj", self.hidden, queries, self.output_bias),
                ("mlp.gate_proj", self.intermediate, self.hidden, self.mlp_bias),
                ("mlp.up_proj", self.intermediate, self.hidden, self.mlp_bias),
                ("mlp.down_proj", self.hidden, self.intermediate, self.mlp_bias),
            ):
                shapes[f"model.layers.{layer}.{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"model.layers.{layer}.{name}.bias"] = (rows,)
            for name in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"model.layers.{layer}.{name}.weight"] = (self.hidden,)
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return shapes


def _refuse_variants(config: Mapping[str, Any]) -> None:
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise UnsupportedError(
            f"hidden_act={activation!r} has no place in a GGUF file, and llama.cpp computes silu for this model",
            "give a model with silu, or use another engine",
        )
    if config.get("quantization_config"):
        raise UnsupportedError("a quantized checkpoint is not converted to GGUF", "give the unquantized model")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and window < config.get("max_position_embeddings", 0):
        raise UnsupportedError(
            f"sliding_window={window} is not in llama.cpp's graph of this architecture: long prompts would differ",
            "use another engine, or a model without a window",
        )


def _rope(config: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """What scales the rotary positions (empty for nothing), and their base; older and newer spellings."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise UnsupportedError(
            f"rope_type={kind!r} is not converted to GGUF here", f"give a model with one of: {', '.join(_ROPE_TYPES)}"
        )
    theta = float(found.get("rope_theta") or config.get("rope_theta") or 10000.0)
    return ({} if kind == "default" else {**found, "rope_type": kind}), theta


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInputError(
            f"config.json of a {config.get('model_type')} model needs {key} as a positive whole number, got {value!r}"
        )
    return value
