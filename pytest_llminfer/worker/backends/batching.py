"""How prompts are put into batches: rows of like length together, under a budget of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def plan_batches(prompt_lengths: Sequence[int], *, max_tokens: int, max_batch_tokens: int) -> list[list[int]]:
    """Indices of the prompts of each batch, longest first, so that a batch that does not fit fails at once and not at the end.

    A row counts its batch's longest prompt plus ``max_tokens``: what its cache will hold. A single row may exceed the budget.
    """
    by_length = sorted(range(len(prompt_lengths)), key=lambda index: (-prompt_lengths[index], index))
    batches: list[list[int]] = []
    for index in by_length:
        if batches:
            row_tokens = prompt_lengths[batches[-1][0]] + max_tokens
            if (len(batches[-1]) + 1) * row_tokens <= max_batch_tokens:
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches
