"""Greedy answers as a record holds them, and back."""

from __future__ import annotations

import json

import numpy as np

from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.families.tokens.observe import pack, unpack
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.verdict import Outcome
from tests.support.present import present

ANSWER = Generation(
    (5, 9, 2),
    "stop",
    text="a b",
    top_ids=np.array([[5, 6, 7, 8], [9, 5, 6, 7], [2, 1, 0, 3]], np.int32),
    top_logprobs=np.array([[-0.01, -5.0, -6.25, -7.5], [-0.7, -0.71, -3.0, -4.0], [-0.1, -3.0, -4.0, -5.0]], np.float32),
    max_logit=np.array([17.5, 16.0, 20.25], np.float32),
)


def test_a_record_gives_back_what_a_comparison_needs() -> None:
    (answer,) = unpack(json.loads(json.dumps(pack([ANSWER]))))
    assert answer.token_ids == ANSWER.token_ids
    assert answer.finish_reason == "stop"
    np.testing.assert_array_equal(answer.top_ids, present(ANSWER.top_ids)[:, :3])
    np.testing.assert_allclose(present(answer.top_logprobs), present(ANSWER.top_logprobs)[:, :3], rtol=1e-3)
    np.testing.assert_allclose(present(answer.max_logit), present(ANSWER.max_logit), rtol=1e-3)


def test_an_answer_without_probabilities_is_kept_as_it_is() -> None:
    (answer,) = unpack(pack([Generation((1, 2), "length")]))
    assert answer == Generation((1, 2), "length")


def test_other_tokens_than_recorded_fail_and_a_tie_does_not() -> None:
    recorded = unpack(pack([ANSWER]))
    tie = Generation((5, 5, 2), "stop", top_ids=present(ANSWER.top_ids)[:, [1, 0, 2, 3]], top_logprobs=ANSWER.top_logprobs)
    wrong = Generation((6, 9, 2), "stop", top_ids=present(ANSWER.top_ids)[:, [1, 0, 2, 3]], top_logprobs=ANSWER.top_logprobs)
    outcomes = [
        check_same_greedy_tokens(candidate=[answer], reference=recorded, dtype="bf16", claim="x").outcome
        for answer in (ANSWER, tie, wrong)
    ]
    assert outcomes == [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
