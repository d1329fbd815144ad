"""Batches of prompts: everything comes once, nothing exceeds the budget, little is padded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.worker.backends.batching import plan_batches

LENGTHS = st.lists(st.integers(min_value=1, max_value=500), max_size=60)


@given(LENGTHS, st.integers(1, 100), st.integers(1, 3000))
def test_every_prompt_comes_once_and_batches_keep_their_budget(lengths: list[int], max_tokens: int, budget: int) -> None:
    batches = plan_batches(lengths, max_tokens=max_tokens, max_batch_tokens=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        row_tokens = max(lengths[index] for index in batch) + max_tokens
        assert len(batch) == 1 or len(batch) * row_tokens <= budget


def test_prompts_of_like_length_go_together_longest_first() -> None:
    assert plan_batches([5, 90, 6, 91, 5], max_tokens=10, max_batch_tokens=210) == [[3, 1], [2, 0, 4]]
    assert plan_batches([], max_tokens=10, max_batch_tokens=210) == []
