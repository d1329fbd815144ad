"""What the transformers backend cannot load, each told in words: cells, damaged models, missing packages."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.errors import BadInputError, EngineStartError, UnsupportedError
from tests.support.engines import transformers_workers
from tests.support.engines.transformers_workers import Worker
from tests.support.paths import REFERENCE

start = transformers_workers.start


@pytest.mark.parametrize(
    ("cell", "engine_args", "error", "words"),
    [
        ({"pp": 2}, {}, UnsupportedError, "no pipeline parallelism.*pp=2"),
        ({"dp": 2, "replication": "native"}, {}, UnsupportedError, "no data parallelism of its own: dp=2"),
        ({"tp": 2, "quantization": "nf4"}, {}, UnsupportedError, "without their scales.*quantization=nf4 with tp=2"),
        ({"tp": 3}, {}, UnsupportedError, "4 attention heads cannot be split over tp=3"),
        ({"tp": 4}, {}, UnsupportedError, "2 KV heads cannot be split over tp=4"),
        ({"dtype": "fp32", "kv_dtype": "bf16"}, {}, UnsupportedError, "not in bf16; use kv_dtype=auto, or dtype=bf16"),
        (
            {},
            {"atn_implementation": "eager"},
            BadInputError,
            "'atn_implementation'.*Did you mean 'attn_implementation'",
        ),
        ({}, {"max_batch_tokens": 0}, BadInputError, "max_batch_tokens must be"),
        ({}, {"attn_implementation": "flashy"}, EngineStartError, "cannot load .*flashy"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_in_words(
    start: Callable[..., Worker], cell: Any, engine_args: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        start().load(engine_args=engine_args, **cell)


def truncate(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def corrupt(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 64)


def lose_a_tensor(model: Path) -> None:
    file = model / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].replace(b"layers.2.mlp.up_proj", b"layers.2.mlp.XX_proj")
    file.write_bytes(data[:8] + header + data[8 + length :])


def lose_the_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def lose_the_configuration(model: Path) -> None:
    (model / "config.json").unlink()


def spoil_the_configuration(model: Path) -> None:
    (model / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, r"model.safetensors is truncated: \d+ bytes of \d+"),
        (corrupt, "is no intact safetensors file"),
        (lose_a_tensor, "lack model.layers.2.mlp.up_proj.weight"),
        (lose_the_weights, r"has no \*.safetensors weights"),
        (lose_the_configuration, "has no config.json"),
        (spoil_the_configuration, "config.json is no JSON"),
        (shutil.rmtree, "there is no model at"),
    ],
)
def test_a_damaged_model_is_named(
    start: Callable[..., Worker], tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    model = shutil.copytree(REFERENCE, tmp_path / "model")
    damage(model)
    with pytest.raises(BadInputError, match=words):
        start().load(model)


@pytest.mark.parametrize(("package", "cell"), [("transformers", {}), ("bitsandbytes", {"quantization": "nf4"})])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    start: Callable[..., Worker], tmp_path: Path, package: str, cell: Any
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\nfind = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else find(name, *rest)\n"
    )
    with pytest.raises(EngineStartError, match=f"-m pip install {package}"):
        start(PYTHONPATH=str(tmp_path)).load(**cell)
