"""What the tests of the llamacpp backend share: engines on the reference model, converted here, and their answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pytest_llminfer.checkpoints.gguf_model import read_gguf
from pytest_llminfer.checkpoints.gguf_names import permuted_heads
from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Verdict

HEADS, KV_HEADS = 4, 2


@pytest.fixture(scope="module")
def model() -> Model:
    return Model("reference")


@pytest.fixture(scope="module")
def prompts(model: Model) -> list[list[int]]:
    return model.prompts(12)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where converted files go: not the cache of whoever runs the tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def start(
    llamacpp_python: Any, cache: Path, model: Model, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Engine]]:
    engines = []

    def start(
        path: Path | None = None,
        *,
        engine: str = "llamacpp",
        engine_args: dict[str, Any] | None = None,
        variables: dict[str, Any] | None = None,
        **cell: Any,
    ) -> Engine:
        served = copy.copy(model)
        served.path = str(path or model.path)
        launch = Launch(
            spec=EngineSpec(engine, environment=llamacpp_python if engine == "llamacpp" else "", **cell),
            model=served,
            engine_args=engine_args or {},
            variables={"XDG_CACHE_HOME": str(cache), **(variables or {})},
            timeout=120,
            log=tmp_path_factory.mktemp("worker") / "log",
        )
        engines.append(Engine(launch))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def fp16(start: Callable[..., Engine]) -> Engine:
    return start(dtype="fp16")


@pytest.fixture(scope="module")
def answers(fp16: Engine, prompts: list[list[int]]) -> list[Generation]:
    return fp16.generate(prompts, max_tokens=100, logprobs=5)


@pytest.fixture(scope="module")
def transformers(start: Callable[..., Engine], prompts: list[list[int]]) -> list[Generation]:
    return start(engine="transformers", dtype="fp32").generate(prompts, max_tokens=100, logprobs=5)


@pytest.fixture(scope="module")
def converted(fp16: Engine, cache: Path) -> Path:
    """The file that ``fp16`` was loaded from."""
    assert fp16.info.dtype == "fp16"
    (file,) = cache.glob("pytest-llminfer/gguf/*/model-fp16.gguf")
    return file


def same(candidate: list[Generation], reference: list[Generation]) -> Verdict:
    return check_same_greedy_tokens(candidate=candidate, reference=reference, dtype="fp16", claim="the same tokens")


def tensor(file: Path, name: str, rows: int) -> npt.NDArray[Any]:
    """The numbers of an fp16 tensor, rows of llama's queries and keys in the order of transformers."""
    entry = read_gguf(file).tensors[name]
    stored = np.fromfile(file, np.float16 if entry.ggml_type == "f16" else np.float32, count=rows, offset=entry.offset)
    values = stored.reshape(entry.shape)
    heads = permuted_heads("llama", name, heads=HEADS, kv_heads=KV_HEADS)
    return values.reshape(heads, -1, 2, *entry.shape[1:]).swapaxes(1, 2).reshape(entry.shape) if heads else values
