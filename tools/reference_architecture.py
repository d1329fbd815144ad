"""The reference model's Llama architecture, written for training: fused kernels, no cache, parameter names of Transformers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's documentation uses
from torch import nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model; the defaults are the shipped ones."""

    vocab_size: int = 1024
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 768
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def config(self, *, eos_token_id: int, pad_token_id: int) -> dict[str, object]:
        """Return config.json of the same model, with the key names that old and new engines read."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "dtype": "bfloat16",
            "eos_token_id": eos_token_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pad_token_id": pad_token_id,
            "pretraining_tp": 1,
            "rms_norm_eps": self.norm_eps,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }


MATRIX_DIMENSIONS = 2


class Linear(nn.Linear):
    """A linear map without bias whose float32 weight is cast to the input's type."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch.nn.Linear's own name
        """Map the last dimension."""
        return F.linear(input, self.weight.to(input.dtype))


class Norm(nn.Module):
    """Root-mean-square normalization over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize and scale."""
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query causal attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.q_proj = Linear(shape.hidden_size, shape.heads * shape.head_dim)
        self.k_proj = Linear(shape.hidden_size, shape.kv_heads * shape.head_dim)
        self.v_proj = Linear(shape.hidden_size, shape.kv_heads * shape.head_dim)
        self.o_proj = Linear(shape.heads * shape.head_dim, shape.hidden_size)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Attend; x has shape (batch, length, hidden), cos and sin (length, head_dim)."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
        projected: torch.Tensor = self.o_proj(attended.transpose(1, 2).flatten(-2))
        return projected


class FeedForward(nn.Module):
    """The SwiGLU block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map each position by itself."""
        mapped: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return mapped


class Layer(nn.Module):
    """One pre-normalized decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = Norm(shape.hidden_size, shape.norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.norm_eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Add attention, then the feed-forward block."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        added: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return added


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden_size, shape.norm_eps)


class ReferenceModel(nn.Module):
    """The trainable model, float32 parameters and ``compute`` activations; its state dict loads in LlamaForCausalLM."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, shape: Shape, compute: torch.dtype) -> None:
        super().__init__()
        self.model = Decoder(shape)
        self.lm_head = Linear(shape.hidden_size, shape.vocab_size)
        self.compute = compute
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(torch.arange(shape.max_positions), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos().to(compute), persistent=False)
        self.register_buffer("sin", angles.sin().to(compute), persistent=False)
        residual_scale = (2 * shape.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == MATRIX_DIMENSIONS:
                scale = residual_scale if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return logits (n, vocabulary) at ``positions``, n indices into the flattened (batch, length) ``tokens``."""
        x = self.model.embed_tokens(tokens).to(self.compute)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        logits: torch.Tensor = self.lm_head(self.model.norm(x.flatten(0, 1).index_select(0, positions)))
        return logits

    def matrices(self) -> list[nn.Parameter]:
        """Return the matrices inside the layers, which Muon updates."""
        return [parameter for parameter in self.model.layers.parameters() if parameter.ndim == MATRIX_DIMENSIONS]

    def others(self) -> list[nn.Parameter]:
        """Return embedding, output head and norms, which AdamW updates."""
        inner = {id(parameter) for parameter in self.matrices()}
        return [parameter for parameter in self.parameters() if id(parameter) not in inner]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate queries or keys by their positions, the first half of a head paired with the second."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
