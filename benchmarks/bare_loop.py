"""The bare side of ``harness_tax.py``: the batched loop that a person would write around transformers, and nothing else.

Loads the reference model once, then, each time it is asked over the socket, words the questions, sorts them by length, fills
batches, calls ``generate``, decodes and grades. Of this package it uses the questions, the chat template and the grading.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Client
from typing import Any

import torch
import transformers

from pytest_llminfer.datasets.gsm8k import Problem, grade
from pytest_llminfer.datasets.load import SYNTHETIC, load
from pytest_llminfer.datasets.prompts import ZERO_SHOT
from pytest_llminfer.families.accuracy.record import ORDER_SEED
from pytest_llminfer.models.model import Model

Answers = dict[str, tuple[list[int], tuple[bool, bool, bool, bool]]]


def batches(prompts: list[list[int]], max_tokens: int, max_batch_tokens: int) -> list[list[int]]:
    """Indices of the prompts of each batch, longest first; a row takes its batch's longest prompt plus ``max_tokens``."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    found: list[list[int]] = []
    while order:
        rows = max(1, max_batch_tokens // (len(prompts[order[0]]) + max_tokens))
        found.append(order[:rows])
        order = order[rows:]
    return found


def answer(model: Any, served: Model, problems: list[Problem], max_tokens: int, max_batch_tokens: int) -> Answers:
    """Token ids and grades (strict, flexible, format_miss, truncated) by question id."""
    prompts = [served.chat(ZERO_SHOT.format(question=problem.question)) for problem in problems]
    end, pad = model.config.eos_token_id, model.config.pad_token_id
    answers: Answers = {}
    for batch in batches(prompts, max_tokens, max_batch_tokens):
        longest = max(len(prompts[index]) for index in batch)
        rows = torch.tensor([[pad] * (longest - len(prompts[index])) + prompts[index] for index in batch])
        mask = torch.tensor([[0] * (longest - len(prompts[index])) + [1] * len(prompts[index]) for index in batch])
        output = model.generate(
            input_ids=rows, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad
        )
        for index, tokens in zip(batch, output[:, longest:].tolist(), strict=True):
            ended = end in tokens
            ids = tokens[: tokens.index(end) + 1] if ended else tokens
            graded = grade(problems[index], served.decode(ids))
            answers[problems[index].id] = ids, (graded.strict, graded.flexible, graded.format_miss, not ended)
    return {problem.id: answers[problem.id] for problem in problems}


def main() -> None:
    """Answer requests until None comes."""
    served = Model("reference")
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(served.path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    ordered = load(SYNTHETIC).ordered(ORDER_SEED)
    with Client(os.environ["HARNESS_TAX_SOCKET"]) as driver:
        driver.send({})
        while (request := driver.recv()) is not None:
            problems = list(ordered[: request["questions"]])
            start = time.perf_counter()
            with torch.inference_mode():
                answers = answer(model, served, problems, request["max_tokens"], request["max_batch_tokens"])
            driver.send({"seconds": time.perf_counter() - start, "answers": answers})


if __name__ == "__main__":
    main()
