"""What llama.cpp holds and tells of itself, and what it refuses, on the reference model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.checkpoints.gguf_model import stored_type, type_bytes
from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.errors import BadInputError, EngineStartError, OutOfMemoryError, UnsupportedError
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Generation
from tests.support.engines import llamacpp_engines
from tests.support.engines.llamacpp_engines import KV_HEADS
from tests.support.present import present

model, prompts, cache, start, fp16, answers = (
    llamacpp_engines.model,
    llamacpp_engines.prompts,
    llamacpp_engines.cache,
    llamacpp_engines.start,
    llamacpp_engines.fp16,
    llamacpp_engines.answers,
)
GGML_WORDS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
QUANTIZED = ("q8_0", "q4_0", "q4_k_m")


def test_the_loaded_model_is_reported(fp16: Engine) -> None:
    info = fp16.info
    assert (info.dtype, info.kv_dtype, info.device, info.end_token_ids) == ("fp16", "fp16", "cpu", (2,))
    assert info.versions["engine"] == info.versions["llama-cpp-python"]
    assert set(info.load_seconds) == {"import", "convert", "load"}


def check_stored(engine: Engine, model: Model, quantization: str, dtype: str) -> None:
    """Every tensor is stored in the type that llama.cpp's mixture names, with its exact bytes."""
    layout, shape = engine.layout(), model.shape
    found = {parameter.name: parameter for parameter in layout.parameters}
    assert set(found) == {weight.name for weight in shape.parameters()}
    for weight in shape.parameters():
        asked: dict[str, Any] = {
            "quantization": quantization,
            "dtype": GGML_WORDS[dtype],
            "layers": shape.layers,
            "tied": shape.tied,
        }
        kind = stored_type(weight.name, weight.shape, **asked)
        word = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}.get(kind, kind)
        parameter = found[weight.name]
        assert (parameter.dtype, parameter.shape, parameter.stored_shape) == (word, weight.shape, weight.shape), weight.name
        assert parameter.stored_bytes == type_bytes(kind, weight.elements), weight.name
    assert engine.memory().weights_bytes == sum(parameter.stored_bytes for parameter in layout.parameters)


def test_the_plain_layout_is_that_of_the_dtype(fp16: Engine, model: Model) -> None:
    check_stored(fp16, model, "none", "fp16")


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_quantized_files_are_stored_as_named_and_still_answer(
    start: Callable[..., Engine], model: Model, prompts: list[list[int]], answers: list[Generation], quantization: str
) -> None:
    engine = start(quantization=quantization)
    assert engine.settings()["resolved"]["file_type"] == quantization
    check_stored(engine, model, quantization, engine.info.dtype)
    found = engine.generate(prompts, max_tokens=100, logprobs=5)
    assert sum(answer.finish_reason == "stop" for answer in found) >= 10
    first = [(present(one.top_ids)[0, 0], present(one.top_logprobs)[0, 0]) for one in found]
    plain = [(present(one.top_ids)[0, 0], present(one.top_logprobs)[0, 0]) for one in answers]
    # The same beginning, by other numbers: it was really quantized.
    assert sum(one[0] == other[0] for one, other in zip(first, plain, strict=True)) >= 10
    assert all(one[1] != other[1] for one, other in zip(first, plain, strict=True))


@pytest.mark.parametrize(
    ("kv_dtype", "item_bytes", "dtype"),
    [("auto", 2, "float16"), ("fp32", 4, "float32"), ("bf16", 2, "bfloat16"), ("q8_0", 34 / 32, "q8_0"), ("q4_0", 18 / 32, "q4_0")],
)
def test_the_kv_pool_is_of_the_type_that_was_asked_for(
    start: Callable[..., Engine],
    prompts: list[list[int]],
    answers: list[Generation],
    tmp_path: Path,
    kv_dtype: str,
    item_bytes: float,
    dtype: str,
) -> None:
    engine = start(dtype="fp16", kv_dtype=kv_dtype, engine_args={"n_ctx": 1024})
    pool = engine.kv_pool()
    assert pool.bytes_per_token == 2 * 4 * 2 * 64 * item_bytes
    assert (pool.stored_bytes, pool.capacity_tokens, pool.dtype) == (1024 * pool.bytes_per_token, 1024, dtype)
    assert pool.max_model_len == 1024
    assert engine.memory().kv_pool_bytes == pool.stored_bytes
    # What the engine itself holds of a sequence is as large, with a header and the positions.
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import llama_cpp\n"
        "def sizes(llama, *, tokens):\n"
        "    found = []\n"
        "    for count in (32, 64):\n"
        "        llama.reset()\n"
        "        llama.eval(tokens[:count])\n"
        "        found.append(llama_cpp.llama_state_seq_get_size(llama._ctx.ctx, 0))\n"
        "    return found\n"
    )
    first, second = engine.run(f"{probe}::sizes", tokens=[*prompts[0], *answers[0].token_ids][:64])
    assert pool.bytes_per_token <= (second - first) / 32 <= pool.bytes_per_token + 32
    assert len(engine.generate(prompts[:2], max_tokens=8)) == 2


def test_memory_stays_over_identical_requests_and_a_leak_is_seen(fp16: Engine, prompts: list[list[int]], tmp_path: Path) -> None:
    report = fp16.memory(reset_peak=True)
    assert report.live_bytes >= present(report.weights_bytes) + present(report.kv_pool_bytes)
    assert report.load_peak_bytes >= report.weights_bytes
    lives = []
    for _ in range(8):
        fp16.generate(prompts, max_tokens=30)
        lives.append(fp16.memory().live_bytes)
    assert len(set(lives[2:])) == 1
    probe = tmp_path / "probe.py"
    probe.write_text("KEPT = []\ndef leak(llama):\n    llama.kept = bytearray(3 << 20)\n")
    fp16.run(f"{probe}::leak")
    assert fp16.memory().live_bytes == lives[-1] + (3 << 20)
    assert fp16.memory().run_peak_bytes > report.weights_bytes


def test_settings_hold_numbers_and_no_paths(fp16: Engine, cache: Path) -> None:
    settings = fp16.settings()
    context = settings["resolved"]["context"]
    assert (context["n_ctx"], context["n_seq_max"], context["type_k"]) == (4096, 16, 1)
    assert "n_threads" not in context  # the host's, which would make another machine's cores a moved default
    assert settings["defaults"]["Llama"]["n_ctx"] == 512
    assert settings["defaults"]["context"]["n_seq_max"] == 1
    assert "pytest-llminfer" not in json.dumps(settings)
    assert str(cache) not in json.dumps(settings)
    again = fp16.settings()
    assert again == settings


def test_the_rest_is_answered(fp16: Engine) -> None:
    (rank,) = fp16.ranks()
    assert (rank.device, rank.weights_bytes) == ("cpu", fp16.memory().weights_bytes)
    assert rank.pid != os.getpid()
    rates = fp16.calibrate()
    assert min(rates.matmul_flops_per_second, rates.copy_bytes_per_second, rates.python_loops_per_second) > 1e6


@pytest.mark.parametrize("kv_dtype", ["fp16", "bf16", "fp32", "q8_0", "q4_0"])
def test_the_cache_grows_and_keeps_its_prefix(
    start: Callable[..., Engine], fp16: Engine, prompts: list[list[int]], kv_dtype: str
) -> None:
    engine = fp16 if kv_dtype == "fp16" else start(dtype="fp16", kv_dtype=kv_dtype, engine_args={"n_ctx": 512})
    report, length = engine.kv_cache(prompts[0], extend=7), len(prompts[0])
    per_token = engine.kv_pool().bytes_per_token
    assert {layer.key_shape for layer in report.layers} == {(1, KV_HEADS, length, 64)}
    assert {layer.value_shape for layer in report.extended_layers} == {(1, KV_HEADS, length + 7, 64)}
    assert sum(layer.stored_bytes for layer in report.layers) == length * per_token
    assert sum(layer.stored_bytes for layer in report.extended_layers) == (length + 7) * per_token
    assert report.prefix_differences == ((0.0, 0.0),) * 4


@pytest.mark.parametrize(
    ("cell", "engine_args", "error", "words"),
    [
        ({"tp": 2}, {}, UnsupportedError, "tp=2"),
        ({"quantization": "nf4"}, {}, UnsupportedError, "no quantization 'nf4'"),
        ({"kv_dtype": "fp8"}, {}, UnsupportedError, "no KV cache of dtype fp8"),
        ({}, {"n_cxt": 64}, BadInputError, "unknown engine argument 'n_cxt' for llamacpp.*Did you mean 'n_ctx'"),
        ({}, {"n_gpu_layers": 2}, UnsupportedError, "n_gpu_layers=2 needs a build"),
        ({}, {"n_ctx": 1 << 40}, OutOfMemoryError, "takes 2,251,799,813,685,248 bytes"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_in_words(
    start: Callable[..., Engine], cell: Any, engine_args: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        start(engine_args=engine_args, **cell)


def test_a_missing_package_is_named_with_the_command_that_installs_it(start: Callable[..., Engine], tmp_path: Path) -> None:
    for package, command in (("gguf", "-m pip install gguf"), ("llama_cpp", "-m pip install llama-cpp-python")):
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.util\nfind = importlib.util.find_spec\n"
            f"importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest)\n"
        )
        with pytest.raises(EngineStartError, match=command):
            start(variables={"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")})


def test_the_worker_ends_by_itself_when_it_is_closed(start: Callable[..., Engine], fp16: Engine) -> None:
    engine = start(dtype="fp16")
    (rank,) = engine.ranks()
    engine.close()
    assert not Path(f"/proc/{rank.pid}").exists()
    assert fp16.ranks()


def test_a_cache_whose_prefix_changes_is_seen(fp16: Engine, prompts: list[list[int]], tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(
        "from pytest_llminfer.worker.backends.llamacpp import decoder\n"
        "ORIGINAL = decoder.Decoder.feed\n"
        "def spoil(llama, *, prompt):\n"
        "    def feed(self, tokens, start=0):\n"
        "        if start == len(prompt):\n"
        "            self.clear()\n"
        "            ORIGINAL(self, [*prompt[:3], prompt[3] + 1, *prompt[4:]])\n"
        "        return ORIGINAL(self, tokens, start)\n"
        "    decoder.Decoder.feed = feed\n"
        "def mend(llama):\n"
        "    decoder.Decoder.feed = ORIGINAL\n"
    )
    fp16.run(f"{probe}::spoil", prompt=prompts[0])
    try:
        report = fp16.kv_cache(prompts[0], extend=2)
    finally:
        fp16.run(f"{probe}::mend")
    assert all(difference > 0 for pair in report.prefix_differences for difference in pair)
