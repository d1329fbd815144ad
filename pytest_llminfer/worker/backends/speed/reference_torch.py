"""A frozen decode step of plain torch: how fast this host drives this device, measured beside an engine that does the same.

A small Llama with random weights, written with torch's operators alone, so that no engine's upgrade changes it. On a GPU its
kernels are shorter than their launches: its time is the host's. Any change of it needs a new ``VERSION``.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from pytest_llminfer.worker.backends.host import mean_seconds

VERSION = "torch-1"
_BATCH, _CONTEXT, _HEADS, _VOCABULARY = 8, 64, 4, 2048
_WIDTH, _LAYERS = 256, {"cuda": 8, "cpu": 4}


class ReferenceStep:
    """The weights and the cache of the step, made anew for each measurement and then forgotten."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator(device=device).manual_seed(0)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        width = _WIDTH

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype) / shape[-1] ** 0.5

        self._device, self._head = device, width // _HEADS
        self._embedding = normal(_VOCABULARY, width)
        self._layers = [
            {
                "qkv": normal(3 * width, width),
                "o": normal(width, width),
                "up": normal(8 * width, width),
                "down": normal(width, 4 * width),
            }
            for _ in range(_LAYERS[device.type])
        ]
        self._norm = torch.ones(width, device=device, dtype=dtype)
        self._cache = [normal(2, _BATCH, _HEADS, _CONTEXT, self._head) for _ in self._layers]
        angles = torch.arange(self._head // 2, device=device) / self._head
        self._cos, self._sin = (turn(angles).to(dtype).repeat(2) for turn in (torch.cos, torch.sin))
        self._tokens = list(range(_BATCH))

    def __call__(self) -> None:
        """One step: tokens from the host, all layers, and the likeliest tokens back on the host."""
        ids = torch.tensor(self._tokens, device=self._device)
        hidden = functional.embedding(ids, self._embedding)
        for layer, cache in zip(self._layers, self._cache, strict=True):
            hidden = hidden + self._attention(self._normalised(hidden), layer, cache)
            gate, up = functional.linear(self._normalised(hidden), layer["up"]).chunk(2, dim=-1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, layer["down"])
        logits = functional.linear(self._normalised(hidden), self._embedding)
        self._tokens = logits.float().argmax(dim=-1).tolist()

    def _normalised(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(hidden.dtype) * self._norm

    def _attention(self, hidden: torch.Tensor, layer: dict[str, torch.Tensor], cache: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.view(_BATCH, _HEADS, 1, self._head) for part in functional.linear(hidden, layer["qkv"]).chunk(3, dim=-1)
        )
        keys = torch.cat([cache[0][:, :, 1:], self._rotated(key)], dim=2)
        values = torch.cat([cache[1][:, :, 1:], value], dim=2)
        attended = functional.scaled_dot_product_attention(self._rotated(query), keys, values)
        return functional.linear(attended.reshape(_BATCH, _HEADS * self._head), layer["o"])

    def _rotated(self, states: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, dim=-1)
        return states * self._cos + torch.cat([-second, first], dim=-1) * self._sin


def measure(device: torch.device) -> dict[str, float | str]:
    """The fields of ``ReferenceStep``."""
    with torch.inference_mode():
        return {"seconds": mean_seconds(ReferenceStep(device)), "version": VERSION}
