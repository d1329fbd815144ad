"""The simulated backend: that it computes a Llama rightly, and that every fault changes what it should and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import pytest_llminfer
from pytest_llminfer.errors import BadInputError, EngineError, OutOfMemoryError, UnsupportedError
from pytest_llminfer.observations import Sampling
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.simulated.backend import SimulatedBackend
from pytest_llminfer.worker.backends.simulated.faults import FAULTS

REFERENCE = Path(pytest_llminfer.__file__).parent / "models" / "reference"
PROBLEMS = Path(pytest_llminfer.__file__).parent / "datasets" / "synthetic.jsonl"
PROCESS_FAULTS = {"crash", "exit", "hang", "hang_in_load", "out_of_memory", "drop_answer"}


def load(model_path: Path = REFERENCE, progress=lambda *_: None, cell: dict | None = None, **engine_args) -> SimulatedBackend:
    backend = SimulatedBackend(EngineSpec("simulated", **(cell or {})), str(model_path), engine_args, progress)
    backend.info = backend.load()
    return backend


def generate(backend, prompts, max_tokens=40, logprobs=0, route="engine", **fields):
    sampling = Sampling(max_tokens=max_tokens, **fields).to_dict()
    return backend.generate(prompts=prompts, sampling=sampling, logprobs=logprobs, route=route)["outputs"]


def tokens(outputs):
    return [output["token_ids"] for output in outputs]


@pytest.fixture(scope="module")
def backend():
    return load()


@pytest.fixture(scope="module")
def problems():
    return [json.loads(line) for line in PROBLEMS.read_text().splitlines()[:10]]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(REFERENCE / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompts(problems, tokenizer):
    form = "Solve it step by step. End with a line of the form #### <number>."
    chats = [f"<|im_start|>user\n{problem['question']}\n\n{form}<|im_end|>\n<|im_start|>assistant\n" for problem in problems]
    return [tokenizer.encode(chat).ids for chat in chats]


def test_it_solves_real_problems_in_time(backend, problems, prompts, tokenizer):
    start = time.perf_counter()
    answers = generate(backend, prompts, max_tokens=150)
    seconds = time.perf_counter() - start
    texts = [tokenizer.decode(answer["token_ids"]) for answer in answers]
    right = [text.strip().endswith(problem["answer"].split("#### ")[-1]) for text, problem in zip(texts, problems, strict=True)]
    assert sum(right) >= 6
    assert seconds < 3 * len(prompts)


def test_all_routes_give_the_same_tokens(backend, prompts):
    engine, loop, no_cache = (generate(backend, prompts[:3], logprobs=3, route=route) for route in ("engine", "loop", "no_cache"))
    assert tokens(engine) == tokens(loop) == tokens(no_cache)
    for answer, other, third in zip(engine, loop, no_cache, strict=True):
        assert answer["top_ids"].shape == (len(answer["token_ids"]), 3)
        np.testing.assert_allclose(answer["top_logprobs"], other["top_logprobs"], atol=1e-3)
        np.testing.assert_allclose(answer["top_logprobs"], third["top_logprobs"], atol=1e-3)
        np.testing.assert_array_equal(answer["top_ids"][:, 0], answer["token_ids"])


def test_batches_change_neither_answers_nor_their_order(backend, prompts):
    shuffled = [prompts[number] for number in (7, 2, 9, 0)]
    alone = [tokens(generate(backend, [prompt]))[0] for prompt in shuffled]
    assert tokens(generate(backend, shuffled)) == alone
    steps = []
    small = load(progress=lambda *step: steps.append(step), max_batch_tokens=150)
    assert tokens(generate(small, shuffled)) == alone
    assert [step for step in steps if step[0] == "generating"][-1] == ("generating", 4, 4)


def test_scores_by_prefill_and_by_decode_agree(backend, prompts):
    (answer,) = generate(backend, prompts[:1], logprobs=1)
    sequence = prompts[0] + answer["token_ids"]
    (prefill,), (decode,) = (backend.score(sequences=[sequence], route=route)["logprobs"] for route in ("prefill", "decode"))
    assert (prefill.shape, prefill.dtype) == ((len(sequence) - 1,), np.float32)
    np.testing.assert_allclose(prefill, decode, atol=1e-3)
    np.testing.assert_allclose(prefill[len(prompts[0]) - 1 :], answer["top_logprobs"][:, 0], atol=1e-4)


def test_stop_tokens_end_a_generation(backend, prompts):
    (whole,) = generate(backend, prompts[:1], max_tokens=100)
    assert (whole["token_ids"][-1], whole["finish_reason"]) == (2, "stop")
    (forced,) = generate(backend, prompts[:1], max_tokens=60, ignore_eos=True)
    assert (len(forced["token_ids"]), forced["finish_reason"]) == (60, "length")
    (stopped,) = generate(backend, prompts[:1], stop_token_ids=(whole["token_ids"][3],))
    assert stopped["token_ids"] == whole["token_ids"][: whole["token_ids"].index(whole["token_ids"][3]) + 1]


def test_sampling_follows_its_seed_and_its_limits(backend, prompts):
    first, again, other = (tokens(generate(backend, prompts[:2], temperature=4.0, top_p=0.999, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    greedy = tokens(generate(backend, prompts[:2]))
    assert tokens(generate(backend, prompts[:2], temperature=1.0, top_k=1)) == greedy
    assert tokens(generate(backend, prompts[:2], temperature=1.0, top_p=1e-6)) == greedy
    assert tokens(generate(backend, prompts[:2], repetition_penalty=3.0)) != greedy


def test_memory_is_counted_exactly(prompts):
    backend = load()
    weights = sum(parameter["stored_bytes"] for parameter in backend.layout()["parameters"])
    report = backend.memory()
    assert report["weights_bytes"] == report["live_bytes"] == report["load_peak_bytes"] == weights == 4 * 3_672_320
    generate(backend, prompts[:1], max_tokens=10)
    cache = 2 * 4 * 2 * 64 * 4 * (len(prompts[0]) + 10)
    assert backend.memory(reset_peak=True)["run_peak_bytes"] == weights + cache
    after = backend.memory()
    assert after["run_peak_bytes"] == after["live_bytes"] == weights


def test_the_cache_is_reported_layer_by_layer(backend, prompts):
    report = backend.kv_cache(prompt=prompts[0], extend=5)
    length = len(prompts[0])
    expected = {"key_shape": [1, 2, length, 64], "value_shape": [1, 2, length, 64], "dtype": "float32"}
    assert report["layers"] == [{**expected, "stored_bytes": 2 * 2 * length * 64 * 4}] * 4
    assert report["extended_layers"][3]["key_shape"] == [1, 2, length + 5, 64]
    assert report["prefix_differences"] == [[0.0, 0.0]] * 4


def test_dummy_weights_need_a_configuration_only_and_are_always_the_same(tmp_path):
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


def test_a_probe_is_called_with_the_live_model(backend, tmp_path):
    (tmp_path / "probes.py").write_text("def layers(model, *, plus):\n    return model.shape.num_hidden_layers + plus\n")
    assert backend.run(path=str(tmp_path / "probes.py"), function="layers", arguments={"plus": 1}) == {"result": 5}
    with pytest.raises(EngineError, match="TypeError"):
        backend.run(path=str(tmp_path / "probes.py"), function="layers", arguments={})


def test_settings_and_calibration_are_told(backend):
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
        ({}, {"faultrate": 0.1}, BadInputError, "unknown engine argument"),
        ({}, {"fault": "leak", "fault_bytes": "many"}, BadInputError, "fault_bytes must be a int"),
        ({}, {"fault": "change_dtype", "fault_dtype": "int3"}, BadInputError, "unknown fault_dtype 'int3'"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_in_words(cell, engine_args, error, words):
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
def test_a_model_that_it_cannot_compute_is_refused(tmp_path, changes, words):
    configuration = json.loads((REFERENCE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**configuration, **changes}))
    with pytest.raises(UnsupportedError, match=words):
        load(tmp_path, cell={"weights": "dummy"})


# Faults: each is compared with the sound engine on every answer, so that nothing but its own symptom may differ.


def observe(backend: SimulatedBackend, prompts: list[list[int]]) -> dict:
    """Every kind of answer, by name."""
    engine = generate(backend, prompts[:6], logprobs=1)
    routes = {route: tokens(generate(backend, prompts[:2], max_tokens=12, route=route)) for route in ("loop", "no_cache")}
    sequence = [*prompts[0], *range(100, 140)]
    scores = {route: backend.score(sequences=[sequence], route=route)["logprobs"][0] for route in ("prefill", "decode")}
    cache = backend.kv_cache(prompt=prompts[0], extend=6)
    return {
        "tokens": tokens(engine),
        "log-probabilities": [answer["top_logprobs"] for answer in engine],
        **routes,
        **scores,
        "cache layers": cache["layers"],
        "cache prefix": cache["prefix_differences"],
        "layout": backend.layout(),
        "live bytes": backend.memory()["live_bytes"],
    }


def same(one, other) -> bool:
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(np.abs(one - other).max() < 1e-2)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other


@pytest.fixture(scope="module")
def sound(prompts):
    return observe(load(), prompts)


EXPECTED = {
    "drop_kv_block": {"tokens", "log-probabilities", "decode", "cache prefix"},
    "shift_positions": {"log-probabilities", "decode"},
    "overwrite_prefix": {"tokens", "log-probabilities", "decode", "cache prefix"},
    "change_dtype": {"layout", "live bytes"},
    "swap_answers": {"tokens", "log-probabilities"},
    "alter_answers": {"tokens"},
    "leak": {"live bytes"},
    "slow": set(),
    "fat_cache": {"cache layers"},
}


def test_every_fault_is_tested():
    assert set(EXPECTED) | PROCESS_FAULTS == set(FAULTS)


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_changes_what_it_should_and_nothing_else(sound, prompts, fault):
    found = observe(load(fault=fault, **({"fault_rate": 0.5} if "answers" in fault else {})), prompts)
    assert {name for name in sound if not same(found[name], sound[name])} == EXPECTED[fault]


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_waits_for_as_many_requests_as_it_is_told(sound, prompts, fault):
    found = observe(load(fault=fault, fault_after=6), prompts)
    assert all(same(found[name], sound[name]) for name in sound)


def test_the_size_of_faults_is_as_told(backend, prompts):
    half = load(fault="change_dtype", fault_dtype="float16").layout()["parameters"]
    changed = [new for new, old in zip(half, backend.layout()["parameters"], strict=True) if new != old]
    assert [(entry["name"], entry["dtype"]) for entry in changed] == [("model.layers.1.mlp.down_proj.weight", "float16")]

    leaking = load(fault="leak", fault_bytes=1000)
    before = leaking.memory()["live_bytes"]
    for count in (1, 2, 3):
        generate(leaking, prompts[:1], max_tokens=1)
        assert leaking.memory()["live_bytes"] == before + 1000 * count

    fat = load(fault="fat_cache").kv_cache(prompt=prompts[0], extend=0)
    lean = backend.kv_cache(prompt=prompts[0], extend=0)
    assert fat["layers"][0]["stored_bytes"] == 2 * lean["layers"][0]["stored_bytes"]


def test_the_share_of_altered_answers_is_as_told(backend, prompts):
    many = [[*prompt[:-1], extra, prompt[-1]] for prompt in prompts[:2] for extra in range(100, 200)]
    sound, altered, swapped = (
        tokens(generate(engine, many, max_tokens=2))
        for engine in (backend, load(fault="alter_answers", fault_rate=0.2), load(fault="swap_answers", fault_rate=0.2))
    )
    assert 0.12 < sum(new != old for new, old in zip(altered, sound, strict=True)) / len(many) < 0.28
    assert sorted(swapped) == sorted(sound)


def test_a_slow_engine_takes_its_factor(backend, prompts):
    # Far apart, since the machine may be busy with other tests.
    slow = load(fault="slow", fault_factor=20.0)
    for engine in (backend, slow):
        generate(engine, prompts)
    seconds = []
    for engine in (backend, slow):
        runs = []
        for _ in range(2):
            start = time.perf_counter()
            generate(engine, prompts)
            runs.append(time.perf_counter() - start)
        seconds.append(min(runs))
    assert seconds[1] > 3 * seconds[0]


def test_memory_really_runs_out(prompts):
    faulty = load(fault="out_of_memory", fault_after=1)
    assert len(generate(faulty, prompts[:1])) == 1
    with pytest.raises(OutOfMemoryError, match="out of memory while generating: Unable to allocate"):
        generate(faulty, prompts[:1])


def _strike(fault: str) -> None:
    generate(load(fault=fault), [[5, 6]], max_tokens=1)


@pytest.mark.parametrize(("fault", "exit_code"), [("crash", -signal.SIGSEGV), ("exit", 3), ("hang", None)])
def test_the_process_really_ends_or_hangs(fault, exit_code):
    process = multiprocessing.get_context("spawn").Process(target=_strike, args=(fault,))
    process.start()
    process.join(timeout=30 if exit_code else 4)
    try:
        assert process.exitcode == exit_code
    finally:
        process.kill()
        process.join()
