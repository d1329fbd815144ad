"""Generation, scores and the cache of the transformers backend, in a worker process as tests use it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.engines.capabilities import possible_capabilities
from pytest_llminfer.errors import BadInputError, EngineError, OutOfMemoryError, UnsupportedError
from pytest_llminfer.observations.generation import Sampling
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.simulated.backend import SimulatedBackend
from tests.support.engines import transformers_workers
from tests.support.engines.transformers_workers import Worker, tokens
from tests.support.paths import REFERENCE

prompts, start = transformers_workers.prompts, transformers_workers.start


@pytest.fixture(scope="module")
def fp32(start: Callable[..., Worker]) -> Worker:
    worker = start()
    worker.info = worker.load(dtype="fp32")
    return worker


@pytest.fixture(scope="module")
def simulated() -> SimulatedBackend:
    backend = SimulatedBackend(EngineSpec("simulated"), str(REFERENCE), {}, lambda *_: None)
    backend.load()
    return backend


def test_the_loaded_model_is_reported(fp32: Worker) -> None:
    info = fp32.info
    assert (info["dtype"], info["kv_dtype"], info["device_count"], info["end_token_ids"]) == ("fp32", "fp32", 1, [2])
    assert info["device_name"]
    assert frozenset(info["capabilities"]) | {"trace"} == possible_capabilities(EngineSpec("transformers"))
    assert {"engine", "torch", "python"} <= set(info["versions"])
    assert set(info["load_seconds"]) == {"import", "load"}


def test_all_execution_modes_give_the_same_tokens_and_log_probabilities(fp32: Worker, prompts: list[list[int]]) -> None:
    engine, loop, no_cache = (
        fp32.generate(prompts[:4], logprobs=4, cache_path=cache_path) for cache_path in ("engine", "loop", "no_cache")
    )
    assert tokens(engine) == tokens(loop) == tokens(no_cache)
    assert len({tuple(ids) for ids in tokens(engine)}) == 4
    for answer, other, third in zip(engine, loop, no_cache, strict=True):
        steps = len(answer["token_ids"])
        assert answer["top_ids"].shape == answer["top_logprobs"].shape == (steps, 4)
        assert answer["max_logit"].shape == (steps,)
        assert (answer["top_ids"].dtype, answer["top_logprobs"].dtype) == (np.int32, np.float32)
        np.testing.assert_allclose(answer["top_logprobs"], other["top_logprobs"], atol=1e-3)
        np.testing.assert_allclose(answer["top_logprobs"], third["top_logprobs"], atol=1e-3)
        np.testing.assert_array_equal(answer["top_ids"][:, 0], answer["token_ids"])


def test_a_batch_gives_what_single_prompts_give_in_their_order(fp32: Worker, prompts: list[list[int]]) -> None:
    shuffled = [prompts[number] for number in (3, 11, 0, 7, 5, 1)]
    fp32.progress.clear()
    batched = fp32.generate(shuffled)
    assert tokens(batched) == [tokens(fp32.generate([prompt]))[0] for prompt in shuffled]
    assert fp32.progress[0] == ("generating", 6, 6)


def test_a_small_budget_makes_more_batches_and_the_same_answers(
    start: Callable[..., Worker], fp32: Worker, prompts: list[list[int]]
) -> None:
    worker = start()
    worker.load(dtype="fp32", engine_args={"max_batch_tokens": 300})
    worker.progress.clear()
    assert tokens(worker.generate(prompts[:6])) == tokens(fp32.generate(prompts[:6]))
    steps = [done for phase, done, _ in worker.progress if phase == "generating"]
    assert len(steps) > 2
    assert steps[-1] == 6


def test_generation_ends_at_an_end_token_or_at_the_limit(fp32: Worker, prompts: list[list[int]]) -> None:
    (ended,) = fp32.generate(prompts[:1], max_tokens=200)
    assert (ended["token_ids"][-1], ended["finish_reason"]) == (2, "stop")
    (cut,) = fp32.generate(prompts[:1], max_tokens=3)
    assert (cut["token_ids"], cut["finish_reason"]) == (ended["token_ids"][:3], "length")
    (teacher_forced,) = fp32.generate(prompts[:1], max_tokens=len(ended["token_ids"]) + 5, ignore_eos=True)
    assert len(teacher_forced["token_ids"]) == len(ended["token_ids"]) + 5
    stop = ended["token_ids"][4]
    (stopped,) = fp32.generate(prompts[:1], max_tokens=50, stop_token_ids=(stop,), ignore_eos=True)
    assert stopped["token_ids"] == ended["token_ids"][: ended["token_ids"].index(stop) + 1]


def test_the_generation_defaults_of_a_model_are_shown_and_never_used(
    start: Callable[..., Worker], fp32: Worker, prompts: list[list[int]], tmp_path: Path
) -> None:
    model = shutil.copytree(REFERENCE, tmp_path / "model")
    defaults = {
        "do_sample": True,
        "temperature": 2.0,
        "repetition_penalty": 1.9,
        "top_k": 3,
        "min_new_tokens": 40,
        "eos_token_id": 2,
    }
    (model / "generation_config.json").write_text(json.dumps(defaults))
    worker = start()
    worker.load(model, dtype="fp32")
    assert tokens(worker.generate(prompts[:3])) == tokens(fp32.generate(prompts[:3]))
    assert worker.ask("settings")["defaults"]["repetition_penalty"] == 1.9


def test_greedy_decoding_runs_no_logits_processor(start: Callable[..., Worker], prompts: list[list[int]], tmp_path: Path) -> None:
    worker = start()
    worker.load(dtype="fp32")
    file = tmp_path / "processors.py"
    file.write_text(
        "def watch(model):\n"
        "    made = model._get_logits_processor\n"
        "    def watched(*args, **fields):\n"
        "        processors = made(*args, **fields)\n"
        "        model.processors_seen = [type(entry).__name__ for entry in processors]\n"
        "        return processors\n"
        "    model._get_logits_processor = watched\n"
        "def seen(model):\n    return model.processors_seen\n"
    )
    worker.ask("run", path=str(file), function="watch", arguments={})
    worker.generate(prompts[:1], max_tokens=2)
    assert worker.ask("run", path=str(file), function="seen", arguments={})["result"] == []


def test_sampling_follows_its_seed(fp32: Worker, prompts: list[list[int]]) -> None:
    first, again, other = (tokens(fp32.generate(prompts[:3], temperature=4.0, top_p=0.999, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert tokens(fp32.generate(prompts[:1], temperature=1.0, top_k=1)) == tokens(fp32.generate(prompts[:1]))


def test_scores_by_prefill_and_by_decode_agree_with_the_generation(fp32: Worker, prompts: list[list[int]]) -> None:
    (answer,) = fp32.generate(prompts[:1], logprobs=1)
    sequence = prompts[0] + answer["token_ids"]
    (prefill,), (decode,) = (
        fp32.ask("score", sequences=[sequence], cache_path=cache_path)["logprobs"] for cache_path in ("prefill", "decode")
    )
    assert prefill.shape == decode.shape == (len(sequence) - 1,)
    assert prefill.dtype == np.float32
    np.testing.assert_allclose(prefill, decode, atol=2e-3)
    np.testing.assert_allclose(prefill[len(prompts[0]) - 1 :], answer["top_logprobs"][:, 0], atol=1e-4)


def test_an_independent_implementation_agrees(fp32: Worker, simulated: SimulatedBackend, prompts: list[list[int]]) -> None:
    sampling = Sampling(max_tokens=64).to_dict()
    ours = simulated.generate(prompts=prompts, sampling=sampling, logprobs=5)["outputs"]
    theirs = fp32.generate(prompts, max_tokens=64, logprobs=5)
    assert tokens(ours) == tokens(theirs)
    for one, other in zip(ours, theirs, strict=True):
        likely = other["top_logprobs"] > -10
        np.testing.assert_allclose(one["top_logprobs"][likely], other["top_logprobs"][likely], atol=1e-4)
        np.testing.assert_allclose(one["max_logit"], other["max_logit"], rtol=1e-4)
    sequences = [prompt + answer["token_ids"] for prompt, answer in zip(prompts, theirs, strict=True)]
    for one, other in zip(
        simulated.score(sequences=sequences)["logprobs"], fp32.ask("score", sequences=sequences)["logprobs"], strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_the_cache_grows_and_keeps_its_prefix(fp32: Worker, simulated: SimulatedBackend, prompts: list[list[int]]) -> None:
    report, other = fp32.ask("kv_cache", prompt=prompts[0], extend=7), simulated.kv_cache(prompt=prompts[0], extend=7)
    length = len(prompts[0])
    assert [layer["key_shape"] for layer in report["layers"]] == [[1, 2, length, 64]] * 4
    assert report["extended_layers"][0]["value_shape"] == [1, 2, length + 7, 64]
    assert report["layers"][0]["stored_bytes"] == 2 * 2 * length * 64 * 4
    assert report["prefix_differences"] == [[0.0, 0.0]] * 4
    assert report["layers"] == other["layers"]


def test_a_probe_is_called_with_the_live_model(fp32: Worker, tmp_path: Path) -> None:
    file = tmp_path / "probes.py"
    file.write_text(
        "import numpy as np\n"
        "def shape(model, *, name):\n    return {'shape': tuple(model.get_parameter(name).shape), 'one': np.float32(1)}\n"
        "def fails(model):\n    raise KeyError('no such layer')\n"
        "def returns_a_tensor(model):\n    return [next(model.parameters())]\n"
    )
    ask = {"path": str(file), "arguments": {}}
    answer = fp32.ask("run", path=str(file), function="shape", arguments={"name": "lm_head.weight"})
    assert answer == {"result": {"shape": [1024, 256], "one": 1.0}}
    with pytest.raises(EngineError, match=r"(?s)fails in .*KeyError: 'no such layer'.*probes.py\", line 5"):
        fp32.ask("run", function="fails", **ask)
    with pytest.raises(BadInputError, match=r"result\[0\] is a Parameter"):
        fp32.ask("run", function="returns_a_tensor", **ask)
    with pytest.raises(BadInputError, match="no function 'missing'; it has: fails, returns_a_tensor, shape"):
        fp32.ask("run", function="missing", **ask)


@pytest.mark.parametrize(
    ("prompt", "fields", "cache_path", "error", "words"),
    [
        ([], {}, "engine", BadInputError, "has 0 tokens"),
        ([5, 1024], {}, "engine", BadInputError, "token id 1024; the vocabulary has the ids 0 to 1023"),
        ([5] * 2040, {}, "engine", BadInputError, "the model has 2048 positions"),
        ([5], {"temperature": 0.5}, "loop", UnsupportedError, "greedily only"),
        ([5], {}, "beam", BadInputError, "unknown cache path 'beam'"),
        ([5], {"max_tokens": 0}, "engine", BadInputError, "max_tokens"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_words(
    fp32: Worker, prompt: Any, fields: Any, cache_path: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fp32.generate([prompt], cache_path=cache_path, **fields)


def test_memory_that_runs_out_is_an_answer_and_the_worker_lives_on(fp32: Worker, prompts: list[list[int]], tmp_path: Path) -> None:
    if fp32.info["device"] != "cpu":
        pytest.skip("a limit on the address space says nothing to a GPU")
    file = tmp_path / "limits.py"
    file.write_text(
        "import resource\n"
        "def limit(model, *, extra):\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + extra if extra else -1, -1))\n"
    )
    before = fp32.ask("memory")["live_bytes"]
    fp32.ask("run", path=str(file), function="limit", arguments={"extra": 32 << 20})
    with pytest.raises(OutOfMemoryError, match="out of memory while generating for 400 prompts"):
        fp32.generate([prompts[0]] * 400, max_tokens=4)
    fp32.ask("run", path=str(file), function="limit", arguments={"extra": 0})
    # Less is possible: what an earlier test left for the garbage collector is gone by now.
    assert fp32.ask("memory")["live_bytes"] <= before
    assert len(fp32.generate(prompts[:1])) == 1
