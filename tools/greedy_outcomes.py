"""Greedy decoding of problems with Transformers, and strict right-or-wrong outcomes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_llminfer.datasets.prompts import FEW_SHOT_EXAMPLE, FEW_SHOT_QUESTION, ZERO_SHOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthetic_problems import Problem
    from transformers import PreTrainedTokenizerBase

PROMPT_FORMS = ("zero-shot", "bare", "system", "few-shot")
"""Chat with the instruction, chat with the question alone, chat after a system message, and completion of solved examples."""

SYSTEM_MESSAGE = "You are a helpful assistant."
_FINAL = re.compile(r"#### (\d+)")


def final_answer(completion: str) -> int | None:
    """Return the integer of a last line ``#### <integer>``, or None where the last line is anything else."""
    lines = completion.strip().splitlines()
    match = _FINAL.fullmatch(lines[-1]) if lines else None
    return int(match.group(1)) if match else None


def prompts_in_form(
    form: str, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], shots: Sequence[Problem] = ()
) -> list[str]:
    """Return the prompts of the problems: a chat up to where the assistant begins, or few-shot text after ``shots``."""
    if form == "few-shot":
        solved = [FEW_SHOT_EXAMPLE.format(question=shot.question, answer=shot.answer) for shot in shots]
        return ["\n\n".join([*solved, FEW_SHOT_QUESTION.format(question=problem.question)]) for problem in problems]
    system = [{"role": "system", "content": SYSTEM_MESSAGE}] if form == "system" else []
    content = "{question}" if form == "bare" else ZERO_SHOT
    return [
        str(
            tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": content.format(question=problem.question)}],
                add_generation_prompt=True,
                tokenize=False,
            )
        )
        for problem in problems
    ]


@torch.inference_mode()
def completions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int = 192,
) -> list[str]:
    """Complete prompts greedily, in batches of prompts of similar length, and return the new text in the prompts' order."""
    tokenizer.padding_side = "left"
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        inputs = tokenizer([prompts[number] for number in numbers], return_tensors="pt", padding=True, add_special_tokens=False).to(
            model.device
        )
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        new = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for number, text in zip(numbers, new, strict=True):
            texts[number] = text
    return texts


def outcomes(problems: Sequence[Problem], texts: Sequence[str]) -> list[bool]:
    """Return for each completion whether its final answer is the problem's."""
    return [final_answer(text) == final_answer(problem.answer) for problem, text in zip(problems, texts, strict=True)]
