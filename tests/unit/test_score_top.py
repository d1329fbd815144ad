"""What engines predict for given tokens, in one form: the simulated engine for real, servers and SGLang by their answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_llminfer.errors import BadInputError, EngineError
from pytest_llminfer.worker.backends.openai import dialects, scoring
from pytest_llminfer.worker.backends.openai.discovery import Asking, Offer, Served, capabilities
from pytest_llminfer.worker.backends.sglang import generation
from pytest_llminfer.worker.backends.simulated.backend import SimulatedBackend
from tests.support.engines import simulated_backends
from tests.support.engines.simulated_backends import load

backend, prompts, problems = simulated_backends.backend, simulated_backends.prompts, simulated_backends.problems


def test_the_simulated_engine_predicts_over_its_cache_what_it_predicts_in_one_pass(
    backend: SimulatedBackend, prompts: list[list[int]]
) -> None:
    sequences = [ids + list(range(100, 116)) for ids in prompts]
    scores = backend.score_top(sequences=sequences, top=20, last=16)["scores"]
    whole = backend.score(sequences=sequences)["logprobs"]
    for ids, row, found in zip(sequences, whole, scores, strict=True):
        np.testing.assert_allclose(found["logprobs"], row[-16:], atol=1e-4)
        assert found["top_ids"].shape == found["top_logprobs"].shape == (16, 20)
        assert (np.diff(found["top_logprobs"], axis=1) <= 0).all()
        listed = found["top_ids"] == np.array(ids[-16:])[:, None]
        np.testing.assert_array_equal(found["top_logprobs"][listed], found["logprobs"][listed.any(axis=1)])


def test_a_batch_of_sequences_is_scored_like_each_alone(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    sequences = [ids + list(range(100, 116)) for ids in prompts]
    together = backend.score_top(sequences=sequences, top=5, last=16)["scores"]
    for ids, found in zip(sequences, together, strict=True):
        (alone,) = backend.score_top(sequences=[ids], top=5, last=16)["scores"]
        np.testing.assert_allclose(found["top_logprobs"], alone["top_logprobs"], atol=1e-4)


@pytest.mark.parametrize("fault", ["shift_positions", "drop_kv_block"])
def test_faults_of_the_cache_show(prompts: list[list[int]], backend: SimulatedBackend, fault: str) -> None:
    sequences = [ids + list(range(100, 116)) for ids in prompts[:3]]
    sound = backend.score_top(sequences=sequences, top=5, last=16)["scores"]
    struck = load(fault=fault).score_top(sequences=sequences, top=5, last=16)["scores"]
    assert max(np.abs(one["logprobs"] - other["logprobs"]).max() for one, other in zip(sound, struck, strict=True)) > 0.1


def test_a_sequence_without_a_prompt_is_refused(backend: SimulatedBackend) -> None:
    with pytest.raises(BadInputError, match="at least 18 are needed"):
        backend.score_top(sequences=[list(range(100, 117))], top=5, last=16)


SEQUENCE = [4, 5, 6]
STEPS = [
    None,
    {"5": {"logprob": -4.0, "rank": 9}, "3": {"logprob": -0.5, "rank": 1}, "8": {"logprob": -1.0, "rank": 2}},
    {"6": {"logprob": -0.1, "rank": 1}, "2": {"logprob": -3.0, "rank": 2}},
]


def test_a_servers_prompt_logprobs_are_read_by_rank() -> None:
    found = scoring.scores({"choices": [{"prompt_logprobs": STEPS}]}, SEQUENCE, top=2, last=2)
    np.testing.assert_array_equal(found["top_ids"], [[3, 8], [6, 2]])
    np.testing.assert_array_equal(found["logprobs"], np.array([-4.0, -0.1], np.float32))
    np.testing.assert_array_equal(found["top_logprobs"], np.array([[-0.5, -1.0], [-0.1, -3.0]], np.float32))


@pytest.mark.parametrize("steps", [None, STEPS[:2], [None, STEPS[2], STEPS[1]]])
def test_a_server_that_tells_nothing_or_of_other_tokens_is_an_error(steps: list[dict[str, dict[str, float]] | None] | None) -> None:
    with pytest.raises(EngineError, match="asked about a prompt of 3 tokens"):
        scoring.scores({"choices": [{"prompt_logprobs": steps}]}, SEQUENCE, top=2, last=2)


def test_a_server_is_asked_for_the_prompt_alone_where_it_is_known_to_answer() -> None:
    asking = Asking("completions", "token_ids", Served("model", {}, dialects.DIALECTS["vllm"]))
    body = scoring.body(asking, SEQUENCE, 20)
    assert (body["prompt"], body["prompt_logprobs"], body["max_tokens"], body["temperature"]) == (SEQUENCE, 20, 1, 0.0)
    offer: dict[str, Any] = {"api": "completions", "prompts": "token_ids", "gives_ids": True, "gives_logprobs": True, "extra": {}}
    assert "score_top" in capabilities(Offer(**offer, scores_prompts=True))
    assert "score_top" not in capabilities(Offer(**offer))
    assert [name for name, dialect in dialects.DIALECTS.items() if dialect.scores_prompts] == ["vllm"]


def test_sglangs_answer_has_the_last_positions_and_names_the_last_id_of_the_vocabulary_0() -> None:
    information = {
        "input_token_logprobs": [(None, 5, None), (-1.5, 0, None), (-2.5, 7, None)],
        "input_top_logprobs": [None, [(-0.5, 3, None), (-1.5, 9, None)], [(-0.2, 4, None), (-2.5, 7, None)]],
    }
    output = {"meta_info": information}
    found = generation.prompt_top(output, [5, 9, 7], 2, vocab_size=10)
    np.testing.assert_array_equal(found["logprobs"], np.array([-1.5, -2.5], np.float32))
    np.testing.assert_array_equal(found["top_ids"], [[3, 9], [4, 7]])
    for other in ([5, 8, 7], [5, 9]):
        with pytest.raises(EngineError, match="was asked to score"):
            generation.prompt_top(output, other, 1, vocab_size=10)
    with pytest.raises(EngineError, match="most likely tokens of 3 positions"):
        generation.prompt_top(output, [5, 9, 7], 3, vocab_size=10)
