"""Cache paths ``loop`` and ``no_cache``: greedy decoding written out, one prompt at a time, as the yardstick of the engine's
own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from pytest_llminfer.worker.backends.requests import end_tokens, finish
from pytest_llminfer.worker.backends.transformers.steps import StepRecorder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_HEARTBEAT_SECONDS = 10.0


def next_logits(model: Any, tokens: Sequence[int], cache: Any = None) -> torch.Tensor:
    """The logits (1, vocabulary) after ``tokens``, which continue what ``cache`` holds; without one nothing is cached."""
    ids = torch.tensor([list(tokens)], device=model.device)
    return model(input_ids=ids, past_key_values=cache, use_cache=cache is not None).logits[:, -1]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Mapping[str, Any],
    *,
    cached: bool,
    model_end_tokens: Sequence[int],
    top: int,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """One answer a prompt. cached: one token a step over a cache; otherwise the whole prefix is recomputed at each step."""
    stops = end_tokens(sampling, model_end_tokens)
    outputs = []
    last = time.monotonic()
    for number, prompt in enumerate(prompts):
        recorder = StepRecorder(top)
        cache = DynamicCache(config=model.config) if cached else None
        generated: list[int] = []
        fresh = list(prompt)
        while len(generated) < sampling["max_tokens"]:
            logits = next_logits(model, fresh, cache)
            recorder.add(logits)
            token = int(logits.argmax(dim=-1))
            generated.append(token)
            if token in stops:
                break
            fresh = [token] if cached else [*fresh, token]
            if time.monotonic() - last > _HEARTBEAT_SECONDS:
                last = time.monotonic()
                progress("generating", number, len(prompts))
        recorder.to_host()
        token_ids, reason = finish(generated, stops)
        outputs.append({"token_ids": token_ids, "finish_reason": reason, **recorder.row(0, len(token_ids))})
        progress("generating", number + 1, len(prompts))
    return outputs
