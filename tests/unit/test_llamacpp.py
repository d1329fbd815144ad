"""The parts of the llama.cpp backend that need neither llama.cpp nor gguf."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pytest_llminfer
from pytest_llminfer.checkpoints.gguf import GgufFile
from pytest_llminfer.checkpoints.gguf_names import permuted_heads, to_gguf, to_transformers
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.llamacpp import cache, kv_pool
from pytest_llminfer.worker.backends.llamacpp.architecture import Architecture
from pytest_llminfer.worker.backends.llamacpp.arguments import Arguments, default_threads
from pytest_llminfer.worker.backends.llamacpp.convert import permute
from pytest_llminfer.worker.backends.llamacpp.source import CheckpointSource, DummySource, to_bf16
from pytest_llminfer.worker.backends.llamacpp.tokenizer import CONTROL, UNUSED, pre_tokenizer, read_vocabulary
from tests.support.paths import REFERENCE
from tests.support.present import present

CONFIG = json.loads((REFERENCE / "config.json").read_text())
TINY = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q1sIQIQ", 1, b"x", 1, 1, 0, 0)
WHOLE = TINY.ljust(64, b"\0") + b"\0" * 4


def quiet(*_: object) -> None:
    """No progress is wanted."""


def test_permuted_rows_turn_like_transformers_halves() -> None:
    heads, half = 3, 4
    rows = np.random.default_rng(1).standard_normal((heads * 2 * half, 5))
    vector = np.random.default_rng(2).standard_normal(5)
    angles = np.arange(1, half + 1) * 0.3
    halves = (rows @ vector).reshape(heads, 2, half)
    ours = np.stack(
        [
            halves[:, 0] * np.cos(angles) - halves[:, 1] * np.sin(angles),
            halves[:, 1] * np.cos(angles) + halves[:, 0] * np.sin(angles),
        ],
        axis=1,
    )
    pairs = (permute(rows, heads) @ vector).reshape(heads, half, 2)
    theirs = np.stack(
        [
            pairs[..., 0] * np.cos(angles) - pairs[..., 1] * np.sin(angles),
            pairs[..., 1] * np.cos(angles) + pairs[..., 0] * np.sin(angles),
        ],
        axis=-1,
    )
    np.testing.assert_allclose(permute(ours.reshape(-1, 1), heads).ravel(), theirs.ravel())
    # Biases are permuted like rows.
    np.testing.assert_array_equal(permute(np.arange(8), 1), [0, 4, 1, 5, 2, 6, 3, 7])


def test_only_queries_and_keys_of_llama_are_permuted() -> None:
    asked = {"heads": 8, "kv_heads": 2}
    names = ("blk.0.attn_q.weight", "blk.11.attn_k.bias", "blk.0.attn_v.weight", "output.weight")
    assert [permuted_heads("llama", name, **asked) for name in names] == [8, 2, 0, 0]
    assert not any(permuted_heads("qwen2", name, **asked) for name in names)


@pytest.mark.parametrize(
    "changes", [{}, {"model_type": "qwen2"}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}]
)
def test_gguf_tensors_match_the_shape_and_names_convert_both_ways(changes: Any) -> None:
    config = {**CONFIG, **changes}
    shapes = Architecture.from_config(config).shapes()
    assert shapes == {weight.name: weight.shape for weight in ModelShape.from_config(config).parameters()}
    targets = [to_gguf(name) for name in shapes]
    assert len(set(targets)) == len(shapes)
    assert [to_transformers(present(target)) for target in targets] == list(shapes)
    assert to_gguf("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert to_transformers("rope_freqs.weight") == "rope_freqs.weight"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model_type": "gpt2"}, UnsupportedError, "'gpt2' are not converted"),
        ({"hidden_act": "gelu"}, UnsupportedError, "'gelu'"),
        ({"sliding_window": 512}, UnsupportedError, "sliding_window=512"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, UnsupportedError, "'yarn'"),
        ({"quantization_config": {"bits": 4}}, UnsupportedError, "quantized checkpoint"),
        ({"num_hidden_layers": None}, BadInputError, "num_hidden_layers"),
    ],
)
def test_a_model_without_a_place_in_gguf_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Architecture.from_config({**CONFIG, **changes})


def test_bf16_rounds_to_the_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, 1.00392, -1.00390625, 3.0e38, 0.0], np.float32)
    rounded = (to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(rounded[:5], np.array([1.0, 1.0, 1.015625, 1.0078125, -1.0], np.float32))
    assert np.isfinite(rounded).all()


def test_dummy_weights_are_the_same_in_any_order() -> None:
    architecture = Architecture.from_config({**CONFIG, "model_type": "qwen2"})
    first, second = DummySource(architecture), DummySource(architecture)
    name = "model.layers.1.mlp.up_proj.weight"
    second.read("lm_head.weight")
    np.testing.assert_array_equal(first.read(name), second.read(name))
    assert abs(float(first.read(name).std()) - CONFIG["initializer_range"]) < 1e-3
    assert not np.array_equal(first.read(name), first.read("model.layers.2.mlp.up_proj.weight"))
    assert (first.read("model.norm.weight") == 1).all()
    assert not first.read("model.layers.0.self_attn.q_proj.bias").any()


def test_a_checkpoint_of_another_configuration_is_refused() -> None:
    for changes, words in (
        ({"num_hidden_layers": 5}, "lack model.layers.4.self_attn.q_proj.weight.* and 6 more"),
        ({"num_hidden_layers": 3}, "hold model.layers.3"),
        ({"intermediate_size": 512}, "the configuration implies"),
    ):
        with pytest.raises(BadInputError, match=words):
            CheckpointSource(REFERENCE, Architecture.from_config({**CONFIG, **changes}))


def test_the_reference_tokenizer_has_a_name_and_is_padded() -> None:
    vocabulary = read_vocabulary(REFERENCE, 1030)
    assert vocabulary is not None
    assert vocabulary.pre_tokenizer == "smollm"
    assert (vocabulary.tokens[2], vocabulary.kinds[2], vocabulary.kinds[1029], len(vocabulary.tokens)) == (
        "<|im_end|>",
        CONTROL,
        UNUSED,
        1030,
    )
    assert len(set(vocabulary.tokens)) == 1030
    assert "<|im_start|>" in vocabulary.chat_template
    assert all(merge.count(" ") == 1 for merge in vocabulary.merges)
    with pytest.raises(BadInputError, match="token id 1000; the model's vocab_size is 1000"):
        read_vocabulary(REFERENCE, 1000)
    assert read_vocabulary(REFERENCE / "missing", 1000) is None


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": None}, "null|{}"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated"}}, "Regex"),
        ({"pre_tokenizer": {"type": "ByteLevel"}, "normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ],
)
def test_an_unknown_way_to_split_text_is_named(tokenizer: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        pre_tokenizer(tokenizer)


class Llama:
    """What the installed class would accept."""

    def __init__(
        self,
        model_path: Any,
        *,
        n_ctx: int = 512,
        n_threads: None = None,
        n_gpu_layers: int = 0,
        type_k: None = None,
        type_v: None = None,
        flash_attn: bool = False,
        **kwargs: Any,
    ) -> None:
        """Nothing is loaded."""


def read(engine_args: Any = None, *, offload: bool = False, **cell: Any) -> Arguments:
    return Arguments.read(engine_args or {}, Llama, EngineSpec("llamacpp", **cell), offload=offload)


def test_arguments_resolve_to_what_the_class_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    plain = read()
    assert plain.keywords["n_threads"] == plain.keywords["n_threads_batch"] == 3
    assert (plain.keywords["type_k"], plain.keywords["type_v"], plain.keywords["flash_attn"]) == (1, 1, False)
    assert plain.keywords["n_gpu_layers"] == 0
    assert read(offload=True).keywords["n_gpu_layers"] == -1
    quantized = read(kv_dtype="q8_0")
    assert (quantized.keywords["type_k"], quantized.keywords["type_v"], quantized.keywords["flash_attn"]) == (8, 8, True)
    mixed = read({"type_k": "q4_0", "n_seq_max": 2})
    assert (mixed.keywords["type_k"], mixed.keywords["type_v"], mixed.keywords["flash_attn"], mixed.sequences) == (2, 1, False, 2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert default_threads() >= 1


@pytest.mark.parametrize(
    ("engine_args", "cell", "error", "words"),
    [
        ({"n_ctxx": 5}, {}, BadInputError, "'n_ctxx'.*Did you mean 'n_ctx'"),
        ({"seed": 5}, {}, BadInputError, "'seed' of llamacpp is set by the cell"),
        ({"kwargs": 5}, {}, BadInputError, "unknown engine argument 'kwargs'"),
        ({"n_ctx": 0}, {}, BadInputError, "n_ctx must be"),
        ({"n_gpu_layers": 4}, {}, UnsupportedError, "n_gpu_layers=4 needs a build"),
        ({"type_v": "q9"}, {}, BadInputError, "unknown type_v 'q9'"),
        ({"type_k": "q8_0"}, {"kv_dtype": "fp16"}, BadInputError, "contradicts the cell's kv_dtype=fp16"),
        ({"type_v": "q8_0", "flash_attn": False}, {}, BadInputError, "needs flash_attn=True"),
        ({}, {"kv_dtype": "fp8"}, UnsupportedError, "no KV cache of dtype fp8"),
    ],
)
def test_arguments_that_nothing_would_read_are_refused(engine_args: Any, cell: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read(engine_args, **cell)


@pytest.mark.parametrize(
    ("kinds", "per_token", "dtype"), [((1, 1), 512, "float16"), ((8, 2), 208, "q8_0+q4_0"), ((0, 30), 768, "float32+bfloat16")]
)
def test_the_pool_has_exact_bytes(kinds: tuple[int, int], per_token: int, dtype: str) -> None:
    sizes = {"block_count": 1, "embedding_length": 512, "attention.head_count": 8, "attention.head_count_kv": 2}
    metadata = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in sizes.items()}}
    pool = kv_pool.report(GgufFile(Path("x.gguf"), 3, metadata, {}), 100, *kinds, longest=50)
    assert (pool["bytes_per_token"], pool["stored_bytes"], pool["dtype"]) == (per_token, 100 * per_token, dtype)
    with pytest.raises(BadInputError, match="multiple of 256"):
        kv_pool.report(GgufFile(Path("x.gguf"), 3, metadata, {}), 100, 12, 1, longest=50)


def test_a_conversion_cut_short_leaves_nothing_that_would_be_used(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "model.gguf"

    def fails(path: Path) -> None:
        path.write_bytes(WHOLE[:40])
        raise KeyboardInterrupt("half way")

    with pytest.raises(KeyboardInterrupt, match="half way"):
        cache.obtain(file, fails, quiet)
    assert [entry.name for entry in file.parent.iterdir()] == [".lock"]
    # A process that was killed cleans nothing up: the next one does.
    (file.parent / "model.gguf.1.unfinished").write_bytes(WHOLE[:40])
    made = []
    for _ in range(2):
        cache.obtain(file, lambda path: made.append(path.write_bytes(WHOLE)), quiet)
    assert len(made) == 1
    assert sorted(entry.name for entry in file.parent.iterdir()) == [".lock", "model.gguf"]
    file.write_bytes(WHOLE[:-1])
    cache.obtain(file, lambda path: made.append(path.write_bytes(WHOLE)), quiet)
    assert len(made) == 2
    assert file.read_bytes() == WHOLE


def test_two_processes_make_one_file(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from pytest_llminfer.worker.backends.llamacpp import cache\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def make(path):\n"
        "    (folder / f'made-{sys.argv[2]}').touch()\n"
        "    time.sleep(1)\n"
        f"    path.write_bytes({WHOLE!r})\n"
        "cache.obtain(folder / 'kept' / 'model.gguf', make, lambda *step: None)\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(Path(pytest_llminfer.__file__).parent.parent)}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)], env=variables) for number in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert (tmp_path / "kept" / "model.gguf").read_bytes() == WHOLE


def test_the_fingerprint_sees_every_input(tmp_path: Path) -> None:
    def prints() -> str:
        return cache.fingerprint(tmp_path, weights="real", version="1")

    files = {"config.json": '{"a": 1, "b": 2}', "tokenizer.json": "{}", "model.safetensors": "weights", "chat_template.jinja": "x"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    first = prints()
    (tmp_path / "config.json").write_text('{"b": 2,   "a": 1}')
    assert prints() == first
    for name in files:
        original = (tmp_path / name).read_text()
        (tmp_path / name).write_text('{"c": 3}')
        assert prints() != first, name
        (tmp_path / name).write_text(original)
    assert (
        cache.fingerprint(tmp_path, weights="real", version="2")
        != first
        != cache.fingerprint(tmp_path, weights="dummy", version="1")
    )
