"""How far execution modes of tiny models are from their own weights in fp32: a program that prints it, for tests that import no
torch.

    python tests/support/programs/unrounded.py

Llamas of 2 and 6 layers with random weights whose predictions are peaked, in bf16. Per depth and mode the squared errors in nats^2,
(prompts, tokens); whether the model is what it was afterwards; and how far its fp32 predictions are from those of an fp32 copy.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from pytest_llminfer.numerics.squared_error import squared_errors
from pytest_llminfer.observations.generation import Scores
from pytest_llminfer.worker.backends.transformers.random_model import make
from pytest_llminfer.worker.backends.transformers.upcast import score_listed

CONFIG = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
PROMPTS, TOKENS, ANSWER, BLOCK, TOP = 10, 36, 8, 16, 5


def decoded(model: Any, ids: Any, change: Callable[[Any], None] = lambda _: None, shift: int = 0) -> Any:
    """Logits (prompts, ANSWER, V): the prompt in one pass, then its answer token by token over the cache."""
    cache = DynamicCache()
    found = [model(ids[:, :TOKENS], past_key_values=cache, logits_to_keep=1).logits]
    for layer in cache.layers:
        change(layer)
    for place in range(TOKENS, TOKENS + ANSWER - 1):
        positions = torch.full((len(ids), 1), place + shift)
        found.append(model(ids[:, place : place + 1], past_key_values=cache, position_ids=positions).logits)
    return torch.cat(found, dim=1)


def wrong_block(number: int) -> Callable[[Any], None]:
    """One layer reads the first block in the place of the second."""
    seen = []

    def change(layer: Any) -> None:
        seen.append(layer)
        if len(seen) - 1 == number:
            for states in (layer.keys, layer.values):
                states[:, :, BLOCK : 2 * BLOCK] = states[:, :, :BLOCK].clone()

    return change


def e4m3(layer: Any) -> None:
    """Keys and values of the prompt as e4m3 keeps them."""
    for states in (layer.keys, layer.values):
        states.copy_(states.to(torch.float8_e4m3fn).to(states.dtype))


def scores(logits: Any) -> Scores:
    """The likeliest tokens of each position of one prompt."""
    values, ids = logits.float().log_softmax(-1).topk(TOP)
    return Scores(values[:, 0].numpy(), ids.to(torch.int32).numpy(), values.numpy())


def by_mode(exact: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The columns of each mode, of each prompt."""
    return [[rows[:, start : start + TOP] for rows in exact] for start in range(0, exact[0].shape[1], TOP)]


def main() -> None:
    """Print the figures of both depths as JSON."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    found = {}
    for layers in (2, 6):
        model = make({**CONFIG, "num_hidden_layers": layers}, "bf16", layers, device=torch.device("cpu"), attention="sdpa")
        ids = torch.randint(CONFIG["vocab_size"], (PROMPTS, TOKENS + ANSWER), generator=torch.Generator().manual_seed(layers))
        modes = {
            "prefill": model(ids[:, :-1], use_cache=False, logits_to_keep=ANSWER).logits,
            "decode": decoded(model, ids),
            "alone": torch.cat([decoded(model, row[None]) for row in ids]),
            "wrong block": decoded(model, ids, wrong_block(layers // 2)),
            "shifted": decoded(model, ids, shift=1),
            "e4m3": decoded(model, ids, e4m3),
        }
        of_modes = {name: [scores(logits[row]) for row in range(PROMPTS)] for name, logits in modes.items()}
        listed = [np.concatenate([of_mode[row].top_ids for of_mode in of_modes.values()], axis=1) for row in range(PROMPTS)]
        before = dict(model.named_parameters())
        exact = score_listed(model, ids.tolist(), listed, max_batch_tokens=256, progress=lambda *_: None)
        after = dict(model.named_parameters())
        wide = copy.deepcopy(model).float()(ids[:, :-1], use_cache=False, logits_to_keep=ANSWER).logits.double().log_softmax(-1)
        copied = wide.gather(-1, torch.from_numpy(np.stack(listed)).long()).numpy()
        found[layers] = {
            "errors": {
                name: [squared_errors(of_mode[row], columns).tolist() for row, columns in enumerate(of_prompts)]
                for (name, of_mode), of_prompts in zip(of_modes.items(), by_mode(exact), strict=True)
            },
            "restored": all(after[name] is parameter and parameter.dtype == torch.bfloat16 for name, parameter in before.items()),
            "from_copy": float(np.abs(np.stack(exact) - copied).max()),
        }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
