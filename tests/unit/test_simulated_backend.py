"""The simulated backend: that it computes a Llama rightly, and refuses in words what it cannot compute."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.errors import BadInputError, EngineError, UnsupportedError
from pytest_llminfer.worker.backends.simulated.backend import SimulatedBackend
from tests.support.engines import simulated_backends
from tests.support.engines.simulated_backends import generate, load, tokens
from tests.support.paths import REFERENCE

backend, problems, tokenizer, prompts = (
    simulated_backends.backend,
    simulated_backends.problems,
    simulated_backends.tokenizer,
    simulated_backends.prompts,
)


def test_it_solves_real_problems_in_time(
    backend: SimulatedBackend, problems: Any, prompts: list[list[int]], tokenizer: Any
) -> None:
    start = time.perf_counter()
    answers = generate(backend, prompts, max_tokens=150)
    seconds = time.perf_counter() - start
    texts = [tokenizer.decode(answer["token_ids"]) for answer in answers]
    right = [text.strip().endswith(problem["answer"].split("#### ")[-1]) for text, problem in zip(texts, problems, strict=True)]
    assert sum(right) >= 6
    assert seconds < 3 * len(prompts)


def test_all_execution_modes_give_the_same_tokens(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    engine, loop, no_cache = (
        generate(backend, prompts[:3], logprobs=3, cache_path=cache_path) for cache_path in ("engine", "loop", "no_cache")
    )
    assert tokens(engine) == tokens(loop) == tokens(no_cache)
    for answer, other, third in zip(engine, loop, no_cache, strict=True):
        assert answer["top_ids"].shape == (len(answer["token_ids"]), 3)
        np.testing.assert_allclose(answer["top_logprobs"], other["top_logprobs"], atol=1e-3)
        np.testing.assert_allclose(answer["top_logprobs"], third["top_logprobs"], atol=1e-3)
        np.testing.assert_array_equal(answer["top_ids"][:, 0], answer["token_ids"])


def test_batches_change_neither_answers_nor_their_order(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    shuffled = [prompts[number] for number in (7, 2, 9, 0)]
    alone = [tokens(generate(backend, [prompt]))[0] for prompt in shuffled]
    assert tokens(generate(backend, shuffled)) == alone
    steps = []
    small = load(progress=lambda *step: steps.append(step), max_batch_tokens=150)
    assert tokens(generate(small, shuffled)) == alone
    assert [step for step in steps if step[0] == "generating"][-1] == ("generating", 4, 4)


def test_scores_by_prefill_and_by_decode_agree(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    (answer,) = generate(backend, prompts[:1], logprobs=1)
    sequence = prompts[0] + answer["token_ids"]
    (prefill,), (decode,) = (
        backend.score(sequences=[sequence], cache_path=cache_path)["logprobs"] for cache_path in ("prefill", "decode")
    )
    assert (prefill.shape, prefill.dtype) == ((len(sequence) - 1,), np.float32)
    np.testing.assert_allclose(prefill, decode, atol=1e-3)
    np.testing.assert_allclose(prefill[len(prompts[0]) - 1 :], answer["top_logprobs"][:, 0], atol=1e-4)


def test_stop_tokens_end_a_generation(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    (whole,) = generate(backend, prompts[:1], max_tokens=100)
    assert (whole["token_ids"][-1], whole["finish_reason"]) == (2, "stop")
    (teacher_forced,) = generate(backend, prompts[:1], max_tokens=60, ignore_eos=True)
    assert (len(teacher_forced["token_ids"]), teacher_forced["finish_reason"]) == (60, "length")
    (stopped,) = generate(backend, prompts[:1], stop_token_ids=(whole["token_ids"][3],))
    assert stopped["token_ids"] == whole["token_ids"][: whole["token_ids"].index(whole["token_ids"][3]) + 1]


def test_sampling_follows_its_seed_and_its_limits(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    first, again, other = (tokens(generate(backend, prompts[:2], temperature=4.0, top_p=0.999, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    greedy = tokens(generate(backend, prompts[:2]))
    assert tokens(generate(backend, prompts[:2], temperature=1.0, top_k=1)) == greedy
    assert tokens(generate(backend, prompts[:2], temperature=1.0, top_p=1e-6)) == greedy
    assert tokens(generate(backend, prompts[:2], repetition_penalty=3.0)) != greedy


def test_memory_is_counted_exactly(prompts: list[list[int]]) -> None:
    backend = load()
    weights = sum(parameter["stored_bytes"] for parameter in backend.layout()["parameters"])
    report = backend.memory()
    assert report["weights_bytes"] == report["live_bytes"] == report["load_peak_bytes"] == weights == 4 * 3_672_320
    generate(backend, prompts[:1], max_tokens=10)
    cache = 2 * 4 * 2 * 64 * 4 * (len(prompts[0]) + 10)
    assert backend.memory(reset_peak=True)["run_peak_bytes"] == weights + cache
    after = backend.memory()
    assert after["run_peak_bytes"] == after["live_bytes"] == weights


def test_the_cache_is_reported_layer_by_layer(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    report = backend.kv_cache(prompt=prompts[0], extend=5)
    length = len(prompts[0])
    expected = {"key_shape": [1, 2, length, 64], "value_shape": [1, 2, length, 64], "dtype": "float32"}
    assert report["layers"] == [{**expected, "stored_bytes": 2 * 2 * length * 64 * 4}] * 4
    assert report["extended_layers"][3]["key_shape"] == [1, 2, length + 5, 64]
    assert report["prefix_differences"] == [[0.0, 0.0]] * 4


def test_dummy_weights_need_a_configuration_only_and_are_always_the_same(tmp_path: Path) -> None:
    shutil.copy(REFERENCE / "config.json", tmp_path)
    cell = {"weights": "dummy"}
    first, again = load(tmp_path, cell=cell), load(tmp_path / "config.json", cell=cell)
    scores = [backend.score(sequences=[list(range(50, 90))])["logprobs"][0] for backend in (first, again)]
    np.testing.assert_array_equal(*scores)
    assert first.layout() == load().layout()
    configuration = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**configuration, "tie_word_embeddings": True}))
    tied = load(tmp_path, cell=cell)
    assert tied.layout()["tied"] == [["model.embed_tokens.weight", "lm_head.weight"]]
    assert len(tied.layout()["parameters"]) == len(first.layout()["parameters"]) - 1


def test_a_probe_is_called_with_the_live_model(backend: SimulatedBackend, tmp_path: Path) -> None:
    (tmp_path / "probes.py").write_text("def layers(model, *, plus):\n    return model.shape.num_hidden_layers + plus\n")
    assert backend.run(path=str(tmp_path / "probes.py"), function="layers", arguments={"plus": 1}) == {"result": 5}
    with pytest.raises(EngineError, match="TypeError"):
        backend.run(path=str(tmp_path / "probes.py"), function="layers", arguments={})


def test_one_process_holds_the_model(backend: SimulatedBackend) -> None:
    (rank,) = backend.ranks()["ranks"]
    assert (rank["pid"], rank["device"], rank["weights_bytes"]) == (os.getpid(), "cpu", backend.memory()["weights_bytes"])
    assert "ranks" in backend.capabilities


def test_settings_and_calibration_are_told(backend: SimulatedBackend) -> None:
    assert backend.settings()["resolved"]["max_position_embeddings"] == 2048
    assert all(rate > 1e6 for rate in backend.calibrate().values())


@pytest.mark.parametrize(
    ("cell", "engine_args", "error", "words"),
    [
        ({"dtype": "bf16"}, {}, UnsupportedError, "float32 only: dtype=bf16"),
        ({"quantization": "nf4"}, {}, UnsupportedError, "quantization=nf4"),
        ({"kv_dtype": "fp16"}, {}, UnsupportedError, "kv_dtype=fp16"),
        ({"dp": 2}, {}, UnsupportedError, "dp=2"),
        ({}, {"fault": "gremlin"}, BadInputError, "unknown fault 'gremlin'; valid: drop_kv_block, .*fat_cache"),
        ({}, {"faultrate": 0.1}, BadInputError, "unknown engine argument 'faultrate' "),
        ({}, {"fault": "leak", "fault_bytes": "many"}, BadInputError, "fault_bytes must be a int"),
        ({}, {"fault": "change_dtype", "fault_dtype": "int3"}, BadInputError, "unknown fault_dtype 'int3'"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_in_words(cell: Any, engine_args: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load(cell=cell, **engine_args)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "Llama models only, not 'gpt2'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "plain RoPE only; the model sets 'llama3'"),
    ],
)
def test_a_model_that_it_cannot_compute_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    configuration = json.loads((REFERENCE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**configuration, **changes}))
    with pytest.raises(UnsupportedError, match=words):
        load(tmp_path, cell={"weights": "dummy"})
