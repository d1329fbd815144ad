"""The reference model in transformers, in bf16, and faults of its KV cache that are undone after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec
from tests.support.paths import FAULTS

KV_FAULTS = FAULTS / "kv_cache.py"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Started once for all tests of a file."""
    log = tmp_path_factory.mktemp("worker") / "log"
    engine = Engine(Launch(EngineSpec("transformers"), Model("reference"), {}, {}, timeout=240, log=log))
    yield engine
    engine.close()


@pytest.fixture
def faulty(engine: Engine) -> Iterator[Callable[..., Any]]:
    """Inject a fault into the worker, which is sound again afterwards."""
    yield lambda fault, **arguments: engine.run(f"{KV_FAULTS}::{fault}", **arguments)
    engine.run(f"{KV_FAULTS}::undo")
