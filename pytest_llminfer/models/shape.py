"""The shape of a decoder from its config.json: every weight, its role and size, and the bytes of a cached token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, InvalidSpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""The words of a cell, and torch's words."""

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}

ROLES = ("embedding", "position", "norm", "attention", "mlp", "bias", "lm_head")
LLAMA_LIKE = ("llama", "mistral", "qwen2")
ARCHITECTURES = (*LLAMA_LIKE, "gpt2")


def torch_dtype(dtype: str) -> str:
    """``dtype`` in torch's words: "bf16" and "bfloat16" are both "bfloat16".

    Raises:
        InvalidSpecError: no dtype that is known here.
    """
    name = TORCH_DTYPES.get(dtype, dtype.removeprefix("torch."))
    if name not in ITEM_BYTES:
        raise InvalidSpecError("dtype", dtype, (*TORCH_DTYPES, *ITEM_BYTES))
    return name


def item_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return ITEM_BYTES[torch_dtype(dtype)]


@dataclass(frozen=True, slots=True)
class WeightShape:
    """One weight tensor of an unquantized model.

    Attributes:
        name: Its name in transformers.
        role: What it is for, one of ``ROLES``.
        shape: As an unquantized model stores it: (out, in) for a linear unless ``transposed``.
        transposed: Whether a linear is stored as (in, out), as GPT-2's Conv1D is.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a dense decoder.

    Attributes:
        architecture: ``model_type`` of the configuration, one of ``ARCHITECTURES``.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer; as many as ``heads`` without grouped-query attention.
        head_dim: Elements of one head.
        intermediate: Width of the MLP.
        vocab: Rows of the embedding.
        tied: Whether the output matrix is the embedding.
        qkv_bias: Whether the projections to queries, keys and values have a bias.
        output_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the linears of the MLP have one.
        positions: Rows of a learned position table; 0 with rotary positions.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    positions: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a config.json.

        Raises:
            UnsupportedError: an architecture whose weights are not known here: a visible skip.
            BadInputError: a known architecture without one of its sizes.
        """
        architecture = str(config.get("model_type", ""))
        if architecture not in ARCHITECTURES:
            raise UnsupportedError(
                f"the weights of architecture {architecture or 'without model_type'!r} are not known here, "
                f"and no exact layout or memory can be predicted for it",
                f"give a model of one of: {', '.join(ARCHITECTURES)}",
            )
        return _read_gpt2(config) if architecture == "gpt2" else _read_llama_like(architecture, config)

    @property
    def tied_pairs(self) -> tuple[tuple[str, str], ...]:
        """Names that share one tensor, each pair in alphabetical order."""
        embedding = "transformer.wte.weight" if self.architecture == "gpt2" else "model.embed_tokens.weight"
        return (("lm_head.weight", embedding),) if self.tied else ()

    def parameters(self) -> tuple[WeightShape, ...]:
        """Every weight tensor, each once: a tied output matrix is not listed."""
        return tuple(self._gpt2() if self.architecture == "gpt2" else self._llama_like())

    @property
    def parameter_count(self) -> int:
        """Elements of all weight tensors."""
        return sum(weight.elements for weight in self.parameters())

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of one token's keys and values: 2 x layers x kv_heads x head_dim x bytes (docs/methods.md#keys-and-values)."""
        return 2 * self.layers * self.kv_heads * self.head_dim * item_bytes(dtype)

    def _llama_like(self) -> Iterator[WeightShape]:
        hidden, inner = self.hidden, self.intermediate
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield WeightShape("model.embed_tokens.weight", "embedding", (self.vocab, hidden))
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            for name, role, shape, bias in (
                ("self_attn.q_proj", "attention", (queries, hidden), self.qkv_bias),
                ("self_attn.k_proj", "attention", (keys, hidden), self.qkv_bias),
                ("self_attn.v_proj", "attention", (keys, hidden), self.qkv_bias),
                ("self_attn.o_proj", "attention", (hidden, queries), self.output_bias),
                ("mlp.gate_proj", "mlp", (inner, hidden), self.mlp_bias),
                ("mlp.up_proj", "mlp", (inner, hidden), self.mlp_bias),
                ("mlp.down_proj", "mlp", (hidden, inner), self.mlp_bias),
            ):
                yield WeightShape(f"{prefix}{name}.weight", role, shape)
                if bias:
                    yield WeightShape(f"{prefix}{name}.bias", "bias", shape[:1])
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield WeightShape(f"{prefix}{name}.weight", "norm", (hidden,))
        yield WeightShape("model.norm.weight", "norm", (hidden,))
        if not self.tied:
            yield WeightShape("lm_head.weight", "lm_head", (self.vocab, hidden))

    def _gpt2(self) -> Iterator[WeightShape]:
        hidden, inner = self.hidden, self.intermediate
        yield WeightShape("transformer.wte.weight", "embedding", (self.vocab, hidden))
        yield WeightShape("transformer.wpe.weight", "position", (self.positions, hidden))
        for layer in range(self.layers):
            prefix = f"transformer.h.{layer}."
            for name, role, shape in (
                ("attn.c_attn", "attention", (hidden, 3 * hidden)),
                ("attn.c_proj", "attention", (hidden, hidden)),
                ("mlp.c_fc", "mlp", (hidden, inner)),
                ("mlp.c_proj", "mlp", (inner, hidden)),
            ):
                yield WeightShape(f"{prefix}{name}.weight", role, shape, transposed=True)
                yield WeightShape(f"{prefix}{name}.bias", "bias", shape[1:])
            for name in ("ln_1", "ln_2"):
                yield WeightShape(f"{prefix}{name}.weight", "norm", (hidden,))
                yield WeightShape(f"{prefix}{name}.bias", "norm", (hidden,))
        yield WeightShape("transformer.ln_f.weight", "norm", (hidden,))
        yield WeightShape("transformer.ln_f.bias", "norm", (hidden,))
        if not self.tied:
            yield WeightShape("lm_head.weight", "lm_head", (self.vocab, hidden))


def _read_llama_like(architecture: str, config: Mapping[str, Any]) -> ModelShape:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    biased = architecture == "llama" and bool(config.get("attention_bias", False))
    return ModelShape(
        architecture=architecture,
        layers=_size(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else heads,
        head_dim=_size(config, "head_dim") if config.get("head_dim") is not None else hidden // heads,
        intermediate=_size(config, "intermediate_size"),
        vocab=_size(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=architecture == "qwen2" or biased,
        output_bias=biased,
        mlp_bias=architecture == "llama" and bool(config.get("mlp_bias", False)),
    )


def _read_gpt2(config: Mapping[str, Any]) -> ModelShape:
    hidden, heads = _size(config, "n_embd"), _size(config, "n_head")
    return ModelShape(
        architecture="gpt2",
        layers=_size(config, "n_layer"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=_size(config, "n_inner") if config.get("n_inner") is not None else 4 * hidden,
        vocab=_size(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", True)),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        positions=_size(config, "n_positions"),
    )


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInputError(f"config.json of a {config['model_type']} model needs {key} as a positive whole number, got {value!r}")
    return value
