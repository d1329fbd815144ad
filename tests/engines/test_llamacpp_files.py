"""What llama.cpp is given: the reference model and others, converted here, and files that are damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pytest_llminfer.checkpoints.gguf_model import config_from_gguf, read_gguf
from pytest_llminfer.checkpoints.gguf_names import to_gguf
from pytest_llminfer.checkpoints.safetensors import read_checkpoint
from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.errors import BadInputError
from pytest_llminfer.models.model import Model
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.worker.backends.llamacpp.source import read_tensor
from tests.support.engines import llamacpp_engines
from tests.support.engines.llamacpp_engines import tensor
from tests.support.paths import REFERENCE
from tests.support.present import present

model, prompts, cache, start, fp16, converted = (
    llamacpp_engines.model,
    llamacpp_engines.prompts,
    llamacpp_engines.cache,
    llamacpp_engines.start,
    llamacpp_engines.fp16,
    llamacpp_engines.converted,
)


def test_every_tensor_is_that_of_the_checkpoint(converted: Path) -> None:
    checkpoint = read_checkpoint(REFERENCE)
    assert len(read_gguf(converted).tensors) == len(checkpoint)
    for name, stored in checkpoint.items():
        values = read_tensor(stored)
        wanted = values.astype(np.float16) if values.ndim > 1 else values
        np.testing.assert_array_equal(tensor(converted, present(to_gguf(name)), values.size), wanted, err_msg=name)


def test_a_conversion_gives_the_same_bytes_again(start: Callable[..., Engine], converted: Path, tmp_path: Path) -> None:
    engine = start(dtype="fp16", variables={"XDG_CACHE_HOME": str(tmp_path)})
    assert engine.info.dtype == "fp16"
    (again,) = tmp_path.glob("pytest-llminfer/gguf/*/*.gguf")
    assert again.name == converted.name
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(converted.read_bytes()).digest()


def test_the_file_tells_the_configuration(converted: Path, model: Model) -> None:
    config = config_from_gguf(read_gguf(converted))
    assert ModelShape.from_config(config) == model.shape
    for key in ("rope_theta", "rms_norm_eps", "max_position_embeddings", "eos_token_id"):
        assert config[key] == pytest.approx(model.config[key])


def test_text_becomes_the_same_tokens_as_in_the_model(fp16: Engine, model: Model, tmp_path: Path) -> None:
    texts = ["Hello  world 12345 é中文\n\n x²½  ", "it's  \t 3.14, <|im_start|>user", " a1b22 'll we've\r\n"]
    probe = tmp_path / "probe.py"
    probe.write_text(
        "def tokens(llama, *, texts):\n    return [llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]\n"
    )
    assert fp16.run(f"{probe}::tokens", texts=texts) == [model.encode(text) for text in texts]


def write_model(folder: Path, config: Any, tensors: dict[str, npt.NDArray[Any]]) -> None:
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


def test_qwen2_with_biases_and_a_tied_embedding_scores_like_transformers(
    start: Callable[..., Engine], prompts: list[list[int]], tmp_path: Path
) -> None:
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


def test_dummy_weights_need_a_configuration_only_and_are_the_same_every_time(start: Callable[..., Engine], tmp_path: Path) -> None:
    config = json.loads((REFERENCE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    scores = []
    for folder in ("one", "two"):
        engine = start(tmp_path, weights="dummy", quantization="q8_0", variables={"XDG_CACHE_HOME": str(tmp_path / folder)})
        scores += engine.score([list(range(100, 120))])
        assert {parameter.dtype for parameter in engine.layout().parameters} == {"q8_0", "float32"}
    np.testing.assert_array_equal(scores[0], scores[1])


def truncate(file: Any) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def garble(file: Any) -> None:
    file.write_bytes(b"\xff" * 4096)


def lose_the_architecture(file: Any) -> None:
    file.write_bytes(file.read_bytes().replace(b"general.architecture", b"general.architectura"))


def lose_a_tensor(file: Any) -> None:
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
def test_a_damaged_file_is_named(
    start: Callable[..., Engine], converted: Path, tmp_path: Path, damage: Callable[..., None], words: str
) -> None:
    file = tmp_path / "damaged.gguf"
    shutil.copy(converted, file)
    damage(file)
    with pytest.raises(BadInputError, match=rf"damaged\.gguf.*{words}"):
        start(file)
