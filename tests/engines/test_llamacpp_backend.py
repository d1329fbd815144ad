"""llama.cpp on the reference model, converted here, against transformers in the same precision."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pytest_llminfer
from pytest_llminfer.checks.kv_cache import check_same_greedy_tokens
from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.errors import BadInputError, EngineStartError, OutOfMemoryError, UnsupportedError
from pytest_llminfer.models.gguf import config_from_gguf, read_gguf, stored_type, type_bytes
from pytest_llminfer.models.model import Model
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations import Sampling
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome
from pytest_llminfer.worker.backends.checkpoint import read_checkpoint
from pytest_llminfer.worker.backends.llamacpp.names import permuted_heads, to_gguf
from pytest_llminfer.worker.backends.llamacpp.source import read_tensor

REFERENCE = Path(pytest_llminfer.__file__).parent / "models" / "reference"
GGML_WORDS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
QUANTIZED = ("q8_0", "q4_0", "q4_k_m")
HEADS, KV_HEADS = 4, 2


@pytest.fixture(scope="module")
def model():
    return Model("reference")


@pytest.fixture(scope="module")
def prompts(model):
    return model.prompts(12)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where converted files go: not the cache of whoever runs the tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def start(llamacpp_python, cache, model, tmp_path_factory):
    engines = []

    def start(path=None, *, engine="llamacpp", engine_args=None, variables=None, **cell) -> Engine:
        served = copy.copy(model)
        served.path = str(path or model.path)
        launch = Launch(
            spec=EngineSpec(engine, environment=llamacpp_python if engine == "llamacpp" else "", **cell),
            model=served,
            engine_args=engine_args or {},
            variables={"OMP_NUM_THREADS": "2", "XDG_CACHE_HOME": str(cache), **(variables or {})},
            timeout=120,
            log=tmp_path_factory.mktemp("worker") / "log",
        )
        engines.append(Engine(launch))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def fp16(start):
    return start(dtype="fp16")


@pytest.fixture(scope="module")
def answers(fp16, prompts):
    return fp16.generate(prompts, max_tokens=100, logprobs=5)


@pytest.fixture(scope="module")
def transformers(start, prompts):
    return start(engine="transformers", dtype="fp32").generate(prompts, max_tokens=100, logprobs=5)


@pytest.fixture(scope="module")
def converted(fp16, cache):
    """The file that ``fp16`` was loaded from."""
    assert fp16.info.dtype == "fp16"
    (file,) = cache.glob("pytest-llminfer/gguf/*/model-fp16.gguf")
    return file


def same(candidate, reference):
    return check_same_greedy_tokens(candidate=candidate, reference=reference, dtype="fp16", claim="the same tokens")


def tensor(file, name, rows):
    """The numbers of an fp16 tensor, rows of llama's queries and keys in the order of transformers."""
    entry = read_gguf(file).tensors[name]
    stored = np.fromfile(file, np.float16 if entry.ggml_type == "f16" else np.float32, count=rows, offset=entry.offset)
    values = stored.reshape(entry.shape)
    heads = permuted_heads("llama", name, heads=HEADS, kv_heads=KV_HEADS)
    return values.reshape(heads, -1, 2, *entry.shape[1:]).swapaxes(1, 2).reshape(entry.shape) if heads else values


def test_every_tensor_is_that_of_the_checkpoint(converted):
    checkpoint = read_checkpoint(REFERENCE)
    assert len(read_gguf(converted).tensors) == len(checkpoint)
    for name, stored in checkpoint.items():
        values = read_tensor(stored)
        wanted = values.astype(np.float16) if values.ndim > 1 else values
        np.testing.assert_array_equal(tensor(converted, to_gguf(name), values.size), wanted, err_msg=name)


def test_a_conversion_gives_the_same_bytes_again(start, converted, tmp_path):
    engine = start(dtype="fp16", variables={"XDG_CACHE_HOME": str(tmp_path)})
    assert engine.info.dtype == "fp16"
    (again,) = tmp_path.glob("pytest-llminfer/gguf/*/*.gguf")
    assert again.name == converted.name
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(converted.read_bytes()).digest()


def test_the_file_tells_the_configuration(converted, model):
    config = config_from_gguf(read_gguf(converted))
    assert ModelShape.from_config(config) == model.shape
    for key in ("rope_theta", "rms_norm_eps", "max_position_embeddings", "eos_token_id"):
        assert config[key] == pytest.approx(model.config[key])


def test_text_becomes_the_same_tokens_as_in_the_model(fp16, model, tmp_path):
    texts = ["Hello  world 12345 é中文\n\n x²½  ", "it's  \t 3.14, <|im_start|>user", " a1b22 'll we've\r\n"]
    probe = tmp_path / "probe.py"
    probe.write_text(
        "def tokens(llama, *, texts):\n    return [llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]\n"
    )
    assert fp16.run(f"{probe}::tokens", texts=texts) == [model.encode(text) for text in texts]


def test_what_was_loaded_is_told(fp16):
    info = fp16.info
    assert (info.dtype, info.kv_dtype, info.device, info.end_token_ids) == ("fp16", "fp16", "cpu", (2,))
    assert info.versions["engine"] == info.versions["llama-cpp-python"]
    assert set(info.load_seconds) == {"import", "convert", "load"}


def test_tokens_equal_those_of_transformers(answers, transformers):
    verdict = same(answers, transformers)
    assert verdict.outcome is Outcome.PASS, verdict
    for ours, theirs in zip(answers, transformers, strict=True):
        if ours.token_ids == theirs.token_ids:
            likely = theirs.top_logprobs > -8
            np.testing.assert_allclose(ours.top_logprobs[likely], theirs.top_logprobs[likely], atol=0.05)
            np.testing.assert_allclose(ours.max_logit, theirs.max_logit, rtol=5e-3)


def test_rows_that_were_not_permuted_are_seen(start, converted, prompts, transformers, tmp_path):
    broken = tmp_path / "broken.gguf"
    shutil.copy(converted, broken)
    entry = read_gguf(broken).tensors["blk.0.attn_q.weight"]
    rows = tensor(converted, entry.name, 256 * 256)
    with broken.open("r+b") as stream:
        stream.seek(entry.offset)
        stream.write(rows.tobytes())
    verdict = same(start(broken).generate(prompts, max_tokens=100, logprobs=5), transformers)
    assert verdict.outcome is Outcome.FAIL


def test_all_routes_give_the_same_tokens(fp16, prompts):
    for route in ("loop", "no_cache"):
        found = fp16.generate(prompts[:3], max_tokens=24, logprobs=5, route=route)
        batched = fp16.generate(prompts[:3], max_tokens=24, logprobs=5)
        verdict = same(found, batched)
        assert verdict.outcome is Outcome.PASS, verdict
        for one, other in zip(found, batched, strict=True):
            np.testing.assert_allclose(one.top_logprobs[:, 0], other.top_logprobs[:, 0], atol=0.02)


def test_answers_come_in_order_whatever_shares_the_cache(start, fp16, prompts, answers):
    """One sequence at a time, few cells, and a batch shorter than a prompt give what sixteen sequences at once gave."""
    narrow = start(dtype="fp16", engine_args={"n_seq_max": 3, "n_ctx": 512, "n_batch": 48})
    assert narrow.settings()["resolved"]["context"]["n_seq_max"] == 3
    found = narrow.generate(prompts, max_tokens=100, logprobs=5)
    verdict = same(found, answers)
    assert verdict.outcome is Outcome.PASS, verdict
    backwards = fp16.generate(prompts[::-1], max_tokens=100, logprobs=5)[::-1]
    assert same(backwards, answers).outcome is Outcome.PASS
    assert len({answer.token_ids for answer in answers}) == len(prompts)


def test_an_answer_ends_with_an_end_token_or_at_the_limit(fp16, prompts, answers):
    assert Counter(answer.finish_reason for answer in answers)["stop"] >= 10
    assert all(answer.token_ids[-1] == 2 for answer in answers if answer.finish_reason == "stop")
    (short,) = fp16.generate(prompts[:1], max_tokens=5)
    assert (short.token_ids, short.finish_reason) == (answers[0].token_ids[:5], "length")
    (longer,) = fp16.generate(prompts[:1], max_tokens=100, ignore_eos=True)
    assert (len(longer.token_ids), longer.finish_reason) == (100, "length")
    stop = answers[0].token_ids[7]
    (stopped,) = fp16.generate(prompts[:1], Sampling(max_tokens=50, stop_token_ids=(stop,)))
    assert stopped.token_ids == answers[0].token_ids[: answers[0].token_ids.index(stop) + 1]


def test_sampling_follows_its_seed_and_its_fields(fp16, prompts, answers):
    def drawn(count=3, **fields):
        return [answer.token_ids for answer in fp16.generate(prompts[:count], Sampling(max_tokens=40, **fields))]

    hot = {"temperature": 4.0, "top_p": 0.999}
    assert drawn(seed=1, **hot) == drawn(seed=1, **hot) != drawn(seed=2, **hot)
    assert len({answer.token_ids for answer in fp16.generate([prompts[0]] * 3, Sampling(max_tokens=40, **hot))}) == 3
    greedy = [answer.token_ids[:40] for answer in answers[:3]]
    assert drawn(temperature=4.0, top_k=1) == drawn(temperature=4.0, top_p=1e-6) == greedy
    penalised = drawn(repetition_penalty=3.0)
    assert penalised != greedy
    assert sum(len(set(tokens)) / len(tokens) for tokens in penalised) > sum(len(set(tokens)) / len(tokens) for tokens in greedy)


def test_scores_by_prefill_and_by_decode_agree_with_the_generation(fp16, prompts, answers):
    sequence = [*prompts[0], *answers[0].token_ids]
    (prefill,), (decode,) = (fp16.score([sequence], route=route) for route in ("prefill", "decode"))
    assert prefill.shape == (len(sequence) - 1,)
    assert prefill.dtype == np.float32
    np.testing.assert_allclose(prefill, decode, atol=0.05)
    np.testing.assert_allclose(decode[len(prompts[0]) - 1 :], answers[0].top_logprobs[:, 0], atol=0.05)
    long = (sequence * 20)[:1500]
    (pieces,) = fp16.score([long])
    np.testing.assert_allclose(pieces[: len(prefill)], prefill, atol=0.05)
    assert np.isfinite(pieces).all()


def check_stored(engine, model, quantization, dtype):
    """Every tensor is stored in the type that llama.cpp's mixture names, with its exact bytes."""
    layout, shape = engine.layout(), model.shape
    found = {parameter.name: parameter for parameter in layout.parameters}
    assert set(found) == {weight.name for weight in shape.parameters()}
    for weight in shape.parameters():
        asked = {"quantization": quantization, "dtype": GGML_WORDS[dtype], "layers": shape.layers, "tied": shape.tied}
        kind = stored_type(weight.name, weight.shape, **asked)
        word = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}.get(kind, kind)
        parameter = found[weight.name]
        assert (parameter.dtype, parameter.shape, parameter.stored_shape) == (word, weight.shape, weight.shape), weight.name
        assert parameter.stored_bytes == type_bytes(kind, weight.elements), weight.name
    assert engine.memory().weights_bytes == sum(parameter.stored_bytes for parameter in layout.parameters)


def test_the_plain_layout_is_that_of_the_dtype(fp16, model):
    check_stored(fp16, model, "none", "fp16")


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_quantized_files_are_stored_as_named_and_still_answer(start, model, prompts, answers, quantization):
    engine = start(quantization=quantization)
    assert engine.settings()["resolved"]["file_type"] == quantization
    check_stored(engine, model, quantization, engine.info.dtype)
    found = engine.generate(prompts, max_tokens=100, logprobs=5)
    assert sum(answer.finish_reason == "stop" for answer in found) >= 10
    first = [(one.top_ids[0, 0], one.top_logprobs[0, 0]) for one in found]
    plain = [(one.top_ids[0, 0], one.top_logprobs[0, 0]) for one in answers]
    # The same beginning, by other numbers: it was really quantized.
    assert sum(one[0] == other[0] for one, other in zip(first, plain, strict=True)) >= 10
    assert all(one[1] != other[1] for one, other in zip(first, plain, strict=True))


def test_bf16_is_the_choice_of_auto_and_bit_equal_to_the_checkpoint(start, cache, prompts, transformers):
    engine = start()
    assert engine.info.dtype == "bf16"
    (file,) = cache.glob("pytest-llminfer/gguf/*/model-bf16.gguf")
    name = "model.layers.1.mlp.down_proj.weight"
    stored, entry = read_checkpoint(REFERENCE)[name], read_gguf(file).tensors[to_gguf(name)]
    ours, theirs = (
        path.read_bytes()[offset : offset + stored.stored_bytes]
        for path, offset in ((file, entry.offset), (stored.file, stored.offset))
    )
    assert ours == theirs
    found = engine.generate(prompts, max_tokens=100, logprobs=5)
    verdict = check_same_greedy_tokens(candidate=found, reference=transformers, dtype="bf16", claim="the same tokens")
    assert verdict.outcome is Outcome.PASS, verdict


@pytest.mark.parametrize(
    ("kv_dtype", "item_bytes", "dtype"),
    [("auto", 2, "float16"), ("fp32", 4, "float32"), ("bf16", 2, "bfloat16"), ("q8_0", 34 / 32, "q8_0"), ("q4_0", 18 / 32, "q4_0")],
)
def test_the_kv_pool_is_of_the_type_that_was_asked_for(start, prompts, answers, tmp_path, kv_dtype, item_bytes, dtype):
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


def test_memory_stays_over_identical_requests_and_a_leak_is_seen(fp16, prompts, tmp_path):
    report = fp16.memory(reset_peak=True)
    assert report.live_bytes >= report.weights_bytes + report.kv_pool_bytes
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


def test_settings_hold_numbers_and_no_paths(fp16, cache):
    settings = fp16.settings()
    context = settings["resolved"]["context"]
    assert (context["n_ctx"], context["n_seq_max"], context["n_threads"], context["type_k"]) == (4096, 16, 2, 1)
    assert settings["defaults"]["Llama"]["n_ctx"] == 512
    assert settings["defaults"]["context"]["n_seq_max"] == 1
    assert "pytest-llminfer" not in json.dumps(settings)
    assert str(cache) not in json.dumps(settings)
    again = fp16.settings()
    assert again == settings


def test_the_rest_is_answered(fp16):
    (rank,) = fp16.ranks()
    assert (rank.device, rank.weights_bytes) == ("cpu", fp16.memory().weights_bytes)
    assert rank.pid != os.getpid()
    rates = fp16.calibrate()
    assert min(rates.matmul_flops_per_second, rates.copy_bytes_per_second, rates.python_loops_per_second) > 1e6


@pytest.mark.parametrize("kv_dtype", ["fp16", "bf16", "fp32", "q8_0", "q4_0"])
def test_the_cache_grows_and_keeps_its_prefix(start, fp16, prompts, kv_dtype):
    engine = fp16 if kv_dtype == "fp16" else start(dtype="fp16", kv_dtype=kv_dtype, engine_args={"n_ctx": 512})
    report, length = engine.kv_cache(prompts[0], extend=7), len(prompts[0])
    per_token = engine.kv_pool().bytes_per_token
    assert {layer.key_shape for layer in report.layers} == {(1, KV_HEADS, length, 64)}
    assert {layer.value_shape for layer in report.extended_layers} == {(1, KV_HEADS, length + 7, 64)}
    assert sum(layer.stored_bytes for layer in report.layers) == length * per_token
    assert sum(layer.stored_bytes for layer in report.extended_layers) == (length + 7) * per_token
    assert report.prefix_differences == ((0.0, 0.0),) * 4


def write_model(folder, config, tensors):
    """A checkpoint of float32 tensors, as safetensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(REFERENCE / name, folder)
    header, offset = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    body = b"".join(np.ascontiguousarray(values).tobytes() for values in tensors.values())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_qwen2_with_biases_and_a_tied_embedding_scores_like_transformers(start, prompts, tmp_path):
    config = json.loads((REFERENCE / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True, "dtype": "float32"}
    tensors = {name: read_tensor(stored) for name, stored in read_checkpoint(REFERENCE).items() if name != "lm_head.weight"}
    generator = np.random.default_rng(0)
    for layer in range(4):
        for part, size in (("q", 256), ("k", 128), ("v", 128)):
            tensors[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = generator.standard_normal(size).astype(np.float32)
    write_model(tmp_path / "qwen2", config, tensors)
    ours = start(tmp_path / "qwen2", dtype="fp32", kv_dtype="fp32")
    assert ours.layout().tied == (("lm_head.weight", "model.embed_tokens.weight"),)
    theirs = start(tmp_path / "qwen2", engine="transformers", dtype="fp32")
    for one, other in zip(ours.score(prompts[:4]), theirs.score(prompts[:4]), strict=True):
        np.testing.assert_allclose(one, other, atol=0.02)


def test_dummy_weights_need_a_configuration_only_and_are_the_same_every_time(start, tmp_path):
    config = json.loads((REFERENCE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    scores = []
    for folder in ("one", "two"):
        engine = start(tmp_path, weights="dummy", quantization="q8_0", variables={"XDG_CACHE_HOME": str(tmp_path / folder)})
        scores += engine.score([list(range(100, 120))])
        assert {parameter.dtype for parameter in engine.layout().parameters} == {"q8_0", "float32"}
    np.testing.assert_array_equal(*scores)


def test_a_gguf_file_is_loaded_as_it_is_and_must_be_what_the_cell_says(start, converted, prompts, answers):
    engine = start(converted)
    assert (engine.info.dtype, engine.info.end_token_ids) == ("fp16", (2,))
    assert engine.generate(prompts[:2], max_tokens=20)[1].token_ids == answers[1].token_ids[:20]
    with pytest.raises(BadInputError, match="is stored as f16, not quantization=q8_0; ask for quantization=none"):
        start(converted, quantization="q8_0")
    with pytest.raises(BadInputError, match="is stored as f16, not dtype=fp32"):
        start(converted, dtype="fp32")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1000])


def garble(file):
    file.write_bytes(b"\xff" * 4096)


def lose_the_architecture(file):
    file.write_bytes(file.read_bytes().replace(b"general.architecture", b"general.architectura"))


def lose_a_tensor(file):
    file.write_bytes(file.read_bytes().replace(b"blk.2.ffn_up.weight", b"blk.2.ffn_xx.weight"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_a_tensor, r"tensor 'blk\.2\.ffn_up\.weight' not found"),
        (truncate, r"is truncated: \d+ bytes of \d+"),
        (garble, "is no intact GGUF file"),
        (lose_the_architecture, "has no attention.head_count"),
        (Path.unlink, "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(start, converted, tmp_path, damage, words):
    file = tmp_path / "damaged.gguf"
    shutil.copy(converted, file)
    damage(file)
    with pytest.raises(BadInputError, match=rf"damaged\.gguf.*{words}"):
        start(file)


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
def test_a_cell_that_cannot_be_is_refused_in_words(start, cell, engine_args, error, words):
    with pytest.raises(error, match=words):
        start(engine_args=engine_args, **cell)


def test_a_missing_package_is_named_with_the_command_that_installs_it(start, tmp_path):
    for package, command in (("gguf", "-m pip install gguf"), ("llama_cpp", "-m pip install llama-cpp-python")):
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.util\nfind = importlib.util.find_spec\n"
            f"importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest)\n"
        )
        with pytest.raises(EngineStartError, match=command):
            start(variables={"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")})


@pytest.mark.parametrize(
    ("prompt", "fields", "words"),
    [
        ([], {}, "has 0 tokens"),
        ([5, 1024], {}, "token id 1024; the vocabulary has the ids 0 to 1023"),
        ([5] * 2040, {}, "the model has 2048 positions"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_words(fp16, prompt, fields, words):
    with pytest.raises(BadInputError, match=words):
        fp16.generate([prompt], **fields)


def test_the_worker_ends_by_itself_when_it_is_closed(start, fp16):
    engine = start(dtype="fp16")
    (rank,) = engine.ranks()
    engine.close()
    assert not Path(f"/proc/{rank.pid}").exists()
    assert fp16.ranks()


def test_a_cache_whose_prefix_changes_is_seen(fp16, prompts, tmp_path):
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
