"""What the tests of the transformers backend share: the worker that hosts it, and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.engines.launchers import local
from pytest_llminfer.engines.profiles import backend
from pytest_llminfer.engines.worker_process import WorkerProcess
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Sampling
from pytest_llminfer.spec import EngineSpec
from tests.support.paths import REFERENCE

QUANTIZATIONS = ("none", "int8", "nf4", "fp4")


class Worker:
    """A worker that hosts the backend, and its requests by name."""

    def __init__(self, log: Path, **variables: str) -> None:
        self.info: dict[str, Any] = {}
        self.quantization = ""
        self.process = WorkerProcess(local.start("", {**variables}, log), log)
        self.progress: list[tuple[str, int, int]] = []

    def load(self, model_path: Path = REFERENCE, engine_args: dict[str, Any] | None = None, **cell: Any) -> Any:
        spec = EngineSpec("transformers", **cell).to_dict()
        return self.ask("load", spec=spec, model_path=str(model_path), engine_args=engine_args or {}, **backend("transformers"))

    def ask(self, method: str, **params: object) -> Any:
        return self.process.request(method, params, timeout=300, progress=lambda *step: self.progress.append(step))

    def generate(self, prompts: Any, max_tokens: int = 48, logprobs: int = 0, cache_path: str = "engine", **fields: Any) -> Any:
        sampling = Sampling(max_tokens=max_tokens, **fields).to_dict()
        return self.ask("generate", prompts=prompts, sampling=sampling, logprobs=logprobs, cache_path=cache_path)["outputs"]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Token ids of chat prompts of different lengths."""
    return Model("reference").prompts(12)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Worker]]:
    workers = []

    def start(**variables: str) -> Worker:
        worker = Worker(tmp_path_factory.mktemp("worker") / "log", **variables)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.process.kill()


def tokens(outputs: Any) -> list[Any]:
    return [output["token_ids"] for output in outputs]
