"""What the tests of the simulated backend share: one that is loaded in this process, and prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pytest_llminfer
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Sampling
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.simulated.backend import SimulatedBackend
from tests.support.paths import REFERENCE

PROBLEMS = Path(pytest_llminfer.__file__).parent / "datasets" / "synthetic.jsonl"


class Loaded(SimulatedBackend):
    """With what loading answered."""

    info: dict[str, Any]


def load(
    model_path: Path = REFERENCE,
    progress: Callable[..., None] = lambda *_: None,
    cell: dict[str, Any] | None = None,
    **engine_args: Any,
) -> Loaded:
    backend = Loaded(EngineSpec("simulated", **(cell or {})), str(model_path), engine_args, progress)
    backend.info = backend.load()
    return backend


def generate(
    backend: SimulatedBackend,
    prompts: list[Any],
    max_tokens: int = 40,
    logprobs: int = 0,
    cache_path: str = "engine",
    **fields: Any,
) -> Any:
    sampling = Sampling(max_tokens=max_tokens, **fields).to_dict()
    return backend.generate(prompts=prompts, sampling=sampling, logprobs=logprobs, cache_path=cache_path)["outputs"]


def tokens(outputs: Any) -> list[Any]:
    return [output["token_ids"] for output in outputs]


@pytest.fixture(scope="module")
def backend() -> Loaded:
    return load()


@pytest.fixture(scope="module")
def problems() -> list[Any]:
    return [json.loads(line) for line in PROBLEMS.read_text().splitlines()[:10]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(REFERENCE / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompts(problems: Any) -> list[list[int]]:
    return Model("reference").prompts(len(problems))
