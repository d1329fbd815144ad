"""Small configurations of four architectures, and ways through the KV cache that must change nothing on any of them."""

from __future__ import annotations

import numpy as np

from pytest_llminfer.worker.protocol.cache_paths import CachePath

TOKENS = 64
WINDOW = 33
SIZE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
}
SHAPES = {
    "gpt2": {"model_type": "gpt2", "n_embd": 128, "n_head": 4, "n_layer": 2, "vocab_size": 512, "n_positions": 256},
    "llama": {**SIZE, "model_type": "llama", "num_attention_heads": 8, "head_dim": 16},
    "qwen2": {**SIZE, "model_type": "qwen2"},
    "gemma3": {
        **SIZE,
        "model_type": "gemma3_text",
        "head_dim": 32,
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}
SLIDING = {"gemma3"}
DECODE = (1,) * TOKENS
LATE = (30, 18, *(1,) * (TOKENS - 48))
BENIGN = (
    CachePath(cache="none", chunks=(30, 34)),
    CachePath(chunks=DECODE),
    CachePath(chunks=(20, 1, 30, 13)),
    CachePath(cache="static", chunks=LATE),
    CachePath(cache="static", chunks=(10, 30, 24)),
    CachePath(pads_left=5, chunks=LATE),
    CachePath(pads_left=3, pads_right=4),
    CachePath(batch=3, chunks=LATE),
    CachePath(batch=3, pads_right=2),
    CachePath(crop=20, crop_extra=7, chunks=(30, 34)),
    CachePath(crop=50, crop_extra=7, batch=2, pads_left=3, chunks=LATE),
    CachePath(crop=TOKENS, crop_extra=40, pads_right=2),
    CachePath(beams=3, chunks=LATE),
    CachePath(beams=3, cache="static", chunks=(30, 20, 14)),
    CachePath(prefix=30, chunks=(40, 24)),
    CachePath(prefix=48, chunks=LATE),
    CachePath(prefix=30, cache="static", chunks=(40, 24)),
    CachePath(prefix=30, crop=40, crop_extra=5, beams=2, batch=2, pads_left=3, chunks=(30, 4, 30)),
)
HOLE = CachePath(pads_right=5, chunks=LATE)


def sequences(*lengths: int, vocabulary: int = 512) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, vocabulary, length).tolist() for length in lengths]
