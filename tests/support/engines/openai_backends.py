"""What the tests of the openai backend share: a fake server, backends that ask it, and their requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.observations.generation import Sampling
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.openai.backend import OpenaiBackend
from tests.support.openai_server import Fake


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fake]:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    server = Fake()
    yield server
    server.server.shutdown()
    server.server.server_close()


class Loaded(OpenaiBackend):
    """With what loading answered, and the progress that it told."""

    info: dict[str, Any]
    progress: list[tuple[str, int, int]]


@pytest.fixture
def load(fake: Fake) -> Iterator[Callable[..., Loaded]]:
    backends: list[Any] = []

    def load(model_path: str = "nowhere", cell: dict[str, Any] | None = None, **engine_args: Any) -> Loaded:
        spec = EngineSpec("openai", environment=fake.address, **(cell or {}))
        progress: list[tuple[str, int, int]] = []
        backend = Loaded(spec, model_path, engine_args, lambda *step: progress.append(step))
        backend.progress = progress
        backends.append(backend)
        backend.info = backend.load()
        fake.bodies.clear()
        return backend

    yield load
    for backend in backends:
        backend.close()


def generate(backend: Loaded, prompts: list[Any], logprobs: int = 0, **sampling: Any) -> Any:
    given = Sampling(**{"max_tokens": 1, **sampling}).to_dict()
    return backend.generate(prompts=prompts, sampling=given, logprobs=logprobs)["outputs"]
