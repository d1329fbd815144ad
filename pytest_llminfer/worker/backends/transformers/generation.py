"""Cache path ``engine``: transformers' own ``generate`` over batches of prompts of like length."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from pytest_llminfer.worker.backends.batching import plan_batches
from pytest_llminfer.worker.backends.requests import end_tokens, finish
from pytest_llminfer.worker.backends.transformers.steps import ForwardObserver, StepRecorder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def generation_config(sampling: Mapping[str, Any], end_token_ids: Sequence[int], pad_token_id: int) -> GenerationConfig:
    """Every choice spelled out: what is left unset, ``generate`` would take from the model's own defaults."""
    sampled = sampling["temperature"] > 0
    return GenerationConfig(
        max_new_tokens=sampling["max_tokens"],
        min_length=0,
        do_sample=sampled,
        # The neutral values leave no logits processor in a greedy generation.
        temperature=float(sampling["temperature"]) if sampled else 1.0,
        top_p=float(sampling["top_p"]) if sampled else 1.0,
        top_k=max(sampling["top_k"], 0) if sampled else 0,
        min_p=None,
        typical_p=1.0,
        repetition_penalty=float(sampling["repetition_penalty"]),
        no_repeat_ngram_size=0,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        eos_token_id=list(end_token_ids) or None,
        pad_token_id=pad_token_id,
        bos_token_id=None,
        return_dict_in_generate=False,
    )


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Mapping[str, Any],
    *,
    model_end_tokens: Sequence[int],
    top: int,
    max_batch_tokens: int,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """One answer a prompt, in the order of the prompts.

    The seed of a sampled batch is the request's seed plus the batch's number, so the same request gives the same answers.
    """
    stops = end_tokens(sampling, model_end_tokens)
    # Padding is masked out, so its id changes nothing; one that is no end token keeps the rows readable.
    pad = next(token for token in range(len(stops) + 1) if token not in stops)
    config = generation_config(sampling, stops, pad)
    lengths = [len(prompt) for prompt in prompts]
    batches = plan_batches(lengths, max_tokens=sampling["max_tokens"], max_batch_tokens=max_batch_tokens)
    outputs: list[dict[str, Any]] = [{} for _ in prompts]
    done = 0
    for number, batch in enumerate(batches):
        recorder = StepRecorder(top)
        torch.manual_seed(sampling["seed"] + number)
        rows, mask = pad_left([prompts[index] for index in batch], pad, model.device)
        with ForwardObserver(model, recorder, functools.partial(progress, "generating", done, len(prompts))):
            sequences = model.generate(input_ids=rows, attention_mask=mask, generation_config=config)
        recorder.to_host()
        for row, (index, tokens) in enumerate(zip(batch, sequences[:, rows.shape[1] :].tolist(), strict=True)):
            token_ids, reason = finish(tokens, stops)
            outputs[index] = {"token_ids": token_ids, "finish_reason": reason, **recorder.row(row, len(token_ids))}
        done += len(batch)
        progress("generating", done, len(prompts))
    return outputs


def pad_left(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask (rows, longest): prompts end together, so that decoding continues from one column."""
    longest = max(len(prompt) for prompt in prompts)
    rows = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        rows[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return rows.to(device), mask.to(device)
