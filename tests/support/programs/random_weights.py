"""What random checkpoints predict, by several execution modes and with faults: a program that prints it, for tests that import no
torch.

    python tests/support/programs/random_weights.py

The depth of qwen2.5-7b, less wide, in bf16. Weights: as tools/random_checkpoint.py draws them; ``dense``: the same sizes, but every
branch writes to every channel; ``plain``: all matrices from N(0, 0.02). Per weights and execution mode the KL in nats, (prompts,
tokens), from decoding a batch, ``alone`` from prefill of a batch, ``rounding`` of bf16 from float32; and the log-probabilities of
the 20 likeliest tokens.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from collections.abc import Callable
from typing import Any

import random_checkpoint

NARROW = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 8192}
PROMPTS, TOKENS, ANSWER, BLOCK = 5, 64, 6, 16


class Fp8Cache(DynamicCache):
    """Keys and values as e4m3 keeps them."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        kept = (states.to(torch.float8_e4m3fn).to(states.dtype) for states in (key_states, value_states))
        return super().update(*kept, *args, **kwargs)


def _make(weights: str) -> Any:
    config = AutoConfig.from_pretrained(random_checkpoint.SHAPES / "qwen2.5-7b", **NARROW)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    random_checkpoint.draw(model)
    branches = 2 * config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if weights == "dense" and name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.normal_(0, random_checkpoint.spread(name, parameter.shape[-1]) / math.sqrt(branches))
        if weights == "plain":
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(float("norm" in name))
    return model


def _decode(
    model: Any, ids: Any, *, cache: Fp8Cache | None = None, change: Callable[..., None] | None = None, shift: int = 0
) -> Any:
    """Log-probabilities (prompts, ANSWER, V): the prompt in one pass, then its answer token by token."""
    cache = DynamicCache() if cache is None else cache
    found = [model(ids[:, :TOKENS], past_key_values=cache, logits_to_keep=1).logits]
    if change:
        for layer in cache.layers:
            change(layer)
    for position in range(TOKENS, ids.shape[1] - 1):
        positions = torch.full((len(ids), 1), position + shift)
        found.append(model(ids[:, position : position + 1], past_key_values=cache, position_ids=positions).logits)
    return torch.cat(found, 1).float().log_softmax(-1)


def _prefill(model: Any, ids: Any) -> Any:
    return model(ids[:, :-1], logits_to_keep=ANSWER).logits.float().log_softmax(-1)


def _answered(model: Any, prompts: Any) -> Any:
    cache, ids, new = DynamicCache(), prompts, prompts
    for _ in range(ANSWER):
        new = model(new, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, new], 1)
    return ids


def _wrong_block(layer: Any) -> None:
    for held in (layer.keys, layer.values):
        held[:, :, BLOCK : 2 * BLOCK] = held[:, :, 2 * BLOCK : 3 * BLOCK].clone()


def _permuted_keys(layer: Any) -> None:
    layer.keys[:, :, BLOCK : 2 * BLOCK] = layer.keys[:, :, BLOCK : 2 * BLOCK].flip(2)


@torch.inference_mode()
def _measure(weights: str) -> dict[Any, Any]:
    model = _make(weights)
    prompts = torch.randint(NARROW["vocab_size"], (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(1))
    ids = _answered(model, prompts)
    batched, prefilled = _decode(model, ids), _prefill(model, ids)
    execution_modes = {
        "alone": (prefilled, torch.cat([_prefill(model, row[None]) for row in ids])),
        "prefill": (batched, prefilled),
    }
    if weights == "drawn":
        execution_modes["fp8"] = batched, _decode(model, ids, cache=Fp8Cache())
    if weights != "dense":
        execution_modes |= {
            "shifted": (batched, _decode(model, ids, shift=1)),
            "wrong block": (batched, _decode(model, ids, change=_wrong_block)),
            "permuted keys": (batched, _decode(model, ids, change=_permuted_keys)),
        }
    execution_modes["rounding"] = (_prefill(model.float(), ids), prefilled)
    kl = {name: (p.exp() * (p - q)).sum(-1).clamp(min=0).tolist() for name, (p, q) in execution_modes.items()}
    entropy = float(-(batched.exp() * batched).sum(-1).mean())
    return {"entropy": entropy, "top_logprobs": batched.topk(20).values.tolist(), "kl": kl}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        json.dump({weights: _measure(weights) for weights in ("drawn", "dense", "plain")}, sys.stdout)
