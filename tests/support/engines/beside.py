"""transformers in the interpreter of the tests, on the processor: what the unrounded weights of another engine are asked of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.engines.engine import Engine, Launch


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """In the place of ``launch_engine``, as ``Unrounded`` calls it."""
    started: list[Engine] = []

    def launch(spec: Any, model: Any, *, beside: bool) -> Engine:
        assert beside
        log = tmp_path_factory.mktemp("beside") / "log"
        variables = {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
        started.append(Engine(Launch(replace(spec, environment=""), model, {}, variables, timeout=240, log=log)))
        return started[-1]

    yield launch
    for engine in started:
        engine.close()
