"""The loop behind cache path ``no_cache``: every step sees the whole prefix, and answers end where they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_llminfer.worker.backends.stepwise import generate_without_cache

END = 9


class Counting:
    """A step whose next token is the length of its prefix, and that remembers what it was given."""

    def __init__(self, cached: int | None = 0) -> None:
        self.calls: list[Any] = []
        self.cached = cached

    def __call__(self, prefixes: Any, logprobs: Any) -> list[Any]:
        self.calls.append(prefixes)
        answers: list[dict[str, Any]] = [
            {"token_ids": [len(prefix)], "finish_reason": "length", "cached_tokens": self.cached} for prefix in prefixes
        ]
        for answer in answers:
            if logprobs:
                token = answer["token_ids"][0]
                answer["top_ids"] = np.array([[token, token + 1]], np.int32)[:, :logprobs]
                answer["top_logprobs"] = np.array([[-0.5, -token]], np.float32)[:, :logprobs]
        return answers


def test_each_step_is_given_every_prefix_that_goes_on_in_order() -> None:
    step = Counting()
    outputs = generate_without_cache(step, [[1] * 7, [2], [3] * 8], 4, {END})
    assert [output["token_ids"] for output in outputs] == [[7, 8, 9], [1, 2, 3, 4], [8, 9]]
    assert [output["finish_reason"] for output in outputs] == ["stop", "length", "stop"]
    assert step.calls[1] == [[1] * 7 + [7], [2, 1], [3] * 8 + [8]]
    assert [len(prefixes) for prefixes in step.calls] == [3, 3, 2, 1]


def test_steps_do_not_share_lists_with_the_loop() -> None:
    seen = []

    def step(prefixes: Any, _: Any) -> list[dict[str, list[int]]]:
        answers: list[dict[str, Any]] = [{"token_ids": [1]} for _ in prefixes]
        seen.append([list(prefix) for prefix in prefixes])
        for prefix in prefixes:
            prefix.clear()
        return answers

    assert generate_without_cache(step, [[5, 6]], 2, ())[0]["token_ids"] == [1, 1]
    assert seen == [[[5, 6]], [[5, 6, 1]]]


def test_arrays_of_the_steps_are_put_one_after_another() -> None:
    (output,) = generate_without_cache(Counting(), [[0] * 3], 4, (), logprobs=2)
    np.testing.assert_array_equal(output["top_ids"], [[3, 4], [4, 5], [5, 6], [6, 7]])
    np.testing.assert_array_equal(output["top_logprobs"][:, 1], [-3, -4, -5, -6])
    assert (output["top_ids"].dtype, output["top_logprobs"].dtype) == (np.int32, np.float32)
    assert "top_ids" not in generate_without_cache(Counting(), [[0]], 2, ())[0]


def test_a_cache_that_was_used_after_all_is_told() -> None:
    assert generate_without_cache(Counting(), [[0]], 3, ())[0]["cached_tokens"] == 0
    assert generate_without_cache(Counting(cached=16), [[0]], 3, ())[0]["cached_tokens"] == 16
    assert "cached_tokens" not in generate_without_cache(Counting(cached=None), [[0]], 3, ())[0]


def test_a_step_that_loses_an_answer_or_adds_a_token_is_a_fault() -> None:
    with pytest.raises(ValueError, match="zip"):
        generate_without_cache(lambda prefixes, _: [{"token_ids": [1]}] * (len(prefixes) - 1), [[0], [1]], 2, ())
    with pytest.raises(ValueError, match="too many values"):
        generate_without_cache(lambda prefixes, _: [{"token_ids": [1, 2]} for _ in prefixes], [[0]], 2, ())


def test_progress_counts_steps() -> None:
    told = []
    generate_without_cache(Counting(), [[0] * 7], 20, {END}, progress=lambda *step: told.append(step))
    assert told == [("generating", 1, 20), ("generating", 2, 20), ("generating", 3, 20)]
