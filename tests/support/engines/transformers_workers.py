"""What the tests of the transformers backend share: the worker that hosts it, and prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llminfer.engines.launchers import local
from pytest_llminfer.engines.worker_process import WorkerProcess
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Sampling
from pytest_llminfer.spec import EngineSpec
from tests.support.paths import REFERENCE

QUANTIZATIONS = ("none", "int8", "nf4", "fp4")


class Worker:
    """A worker that hosts the backend, and its requests by name."""

    def __init__(self, log: Path, **variables: str) -> None:
        self.process = WorkerProcess(local.start("", {"OMP_NUM_THREADS": "2", **variables}, log), log)
        self.progress: list[tuple[str, int, int]] = []

    def load(self, model_path: Path = REFERENCE, engine_args: dict | None = None, **cell: object):
        spec = EngineSpec("transformers", **cell).to_dict()
        return self.ask("load", spec=spec, model_path=str(model_path), engine_args=engine_args or {})

    def ask(self, method: str, **params: object):
        return self.process.request(method, params, timeout=300, progress=lambda *step: self.progress.append(step))

    def generate(self, prompts, max_tokens=48, logprobs=0, cache_path="engine", **fields):
        sampling = Sampling(max_tokens=max_tokens, **fields).to_dict()
        return self.ask("generate", prompts=prompts, sampling=sampling, logprobs=logprobs, cache_path=cache_path)["outputs"]


@pytest.fixture(scope="module")
def prompts():
    """Token ids of chat prompts of different lengths."""
    return Model("reference").prompts(12)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    workers = []

    def start(**variables: str) -> Worker:
        worker = Worker(tmp_path_factory.mktemp("worker") / "log", **variables)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.process.kill()


def tokens(outputs):
    return [output["token_ids"] for output in outputs]
