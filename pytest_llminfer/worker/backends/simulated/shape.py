"""The shape of a Llama, read from config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Shape:
    """What config.json says of a Llama, under its own names.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_hidden_layers: Decoder layers.
        num_attention_heads: Query heads of a layer.
        num_key_value_heads: Key and value heads of a layer.
        head_dim: Elements of one head.
        vocab_size: Rows of the embedding.
        max_position_embeddings: Longest sequence, in tokens.
        rms_norm_eps: Epsilon of the RMS norms.
        rope_theta: Base of the rotary positions.
        tie_word_embeddings: Whether the output matrix is the embedding.
        end_token_ids: ``eos_token_id`` in rising order; empty without one.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    end_token_ids: tuple[int, ...]

    @classmethod
    def read(cls, configuration: Mapping[str, Any]) -> Shape:
        """Refuse what the NumPy model does not compute.

        Raises:
            UnsupportedError: another architecture, biases, another activation or scaled positions.
            BadInputError: a size is missing.
        """
        if configuration.get("model_type") != "llama":
            raise UnsupportedError(
                f"the simulated engine computes Llama models only, not {configuration.get('model_type')!r}",
                "give a Llama model, or use another engine",
            )
        for name in ("attention_bias", "mlp_bias"):
            if configuration.get(name):
                raise UnsupportedError(
                    f"the simulated engine has no biases; the model sets {name}", "give a model without them, or use another engine"
                )
        if configuration.get("hidden_act", "silu") != "silu":
            raise UnsupportedError(
                f"the simulated engine has SwiGLU only; the model sets hidden_act {configuration['hidden_act']!r}",
                "give a model with silu, or use another engine",
            )
        rope = configuration.get("rope_parameters") or configuration.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UnsupportedError(
                f"the simulated engine has plain RoPE only; the model sets {kind!r}",
                "give a model without scaled positions, or use another engine",
            )
        try:
            heads = configuration["num_attention_heads"]
            return cls(
                hidden_size=configuration["hidden_size"],
                intermediate_size=configuration["intermediate_size"],
                num_hidden_layers=configuration["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=configuration.get("num_key_value_heads") or heads,
                head_dim=configuration.get("head_dim") or configuration["hidden_size"] // heads,
                vocab_size=configuration["vocab_size"],
                max_position_embeddings=configuration.get("max_position_embeddings", 2048),
                rms_norm_eps=configuration.get("rms_norm_eps", 1e-6),
                rope_theta=float(rope.get("rope_theta") or configuration.get("rope_theta") or 10_000.0),
                tie_word_embeddings=bool(configuration.get("tie_word_embeddings", False)),
                end_token_ids=_end_tokens(configuration.get("eos_token_id")),
            )
        except KeyError as error:
            raise BadInputError(f"config.json lacks {error}") from error

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, (out, in) for a linear, under the names of a Llama checkpoint."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            shapes |= {
                f"{prefix}.self_attn.q_proj.weight": (queries, hidden),
                f"{prefix}.self_attn.k_proj.weight": (keys, hidden),
                f"{prefix}.self_attn.v_proj.weight": (keys, hidden),
                f"{prefix}.self_attn.o_proj.weight": (hidden, queries),
                f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
                f"{prefix}.mlp.up_proj.weight": (inner, hidden),
                f"{prefix}.mlp.down_proj.weight": (hidden, inner),
                f"{prefix}.input_layernorm.weight": (hidden,),
                f"{prefix}.post_attention_layernorm.weight": (hidden,),
            }
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


def _end_tokens(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(sorted(ids)) if isinstance(ids, list) else (ids,)
