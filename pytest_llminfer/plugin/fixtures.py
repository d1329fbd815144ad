"""The fixture chain, by names that are this plugin's alone; ``short_names`` has the names that tests use.

``llminfer_engine_spec`` (session, one value a cell) → ``llminfer_model``, ``engine_args`` → ``launch_engine`` → ``llminfer_engine``
(session, loaded once) → ``llminfer_judge``, ``llminfer_baseline`` (function). A project may override each link in its conftest.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.plugin.session import refuse_platform, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.baselines.notes import Note
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.hardware import Hardware
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.plugin.judging import Judge
    from pytest_llminfer.spec import EngineSpec


@pytest.fixture(scope="session")
def llminfer_engine_spec(request: pytest.FixtureRequest) -> EngineSpec:
    """The cell under test."""
    from pytest_llminfer.errors import UnsupportedPlatformError

    refuse_platform(UnsupportedPlatformError)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def llminfer_checkpoint(request: pytest.FixtureRequest) -> str:
    """The path of a checkpoint that ``--checkpoint`` names; no engine is started for it."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def llminfer_model(llminfer_engine_spec: EngineSpec, pytestconfig: pytest.Config) -> Model:
    """What is served: files, configuration, tokenizer, chat template, shape arithmetic."""
    from pytest_llminfer.models.model import Model

    called = settings_of(pytestconfig).session.model_names.get(llminfer_engine_spec.model, "")
    return Model(llminfer_engine_spec.model, weights=llminfer_engine_spec.weights, called=called)


@pytest.fixture(scope="session")
def engine_args(pytestconfig: pytest.Config) -> Mapping[str, Any]:
    """Further arguments of the engine, from ``--engine-args``; override it to give a project's own."""
    return settings_of(pytestconfig).session.engine_args


@pytest.fixture(scope="session")
def launch_engine(
    llminfer_engine_spec: EngineSpec, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Engine]]:
    """Start engines: called with (spec, model, engine_args, variables); all are ended with the cell."""
    from pytest_llminfer.plugin.launching import Launcher

    launcher = Launcher(pytestconfig, tmp_path_factory.mktemp(f"llminfer-{llminfer_engine_spec.engine}"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def llminfer_engine(
    llminfer_engine_spec: EngineSpec, llminfer_model: Model, engine_args: Mapping[str, Any], launch_engine: Callable[..., Engine]
) -> Iterator[Engine]:
    """The engine of this cell, loaded once for all its tests."""
    loaded = launch_engine(llminfer_engine_spec, llminfer_model, engine_args)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def llminfer_hardware() -> Hardware:
    """This machine's accelerators, or its processor."""
    from pytest_llminfer.hardware import detect

    return detect()


@pytest.fixture
def llminfer_judge(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Judge:
    """Turns a verdict into this test's outcome."""
    from pytest_llminfer.plugin.judging import Judge

    return Judge(request.node, settings_of(pytestconfig))


@pytest.fixture
def llminfer_note(request: pytest.FixtureRequest) -> Note:
    """Takes what this test found to the report of the session."""
    from pytest_llminfer.plugin.judging import note_of

    return note_of(request.node)


@pytest.fixture
def llminfer_baseline(
    pytestconfig: pytest.Config,
    llminfer_engine: Engine,
    llminfer_hardware: Hardware,
    llminfer_judge: Judge,
    llminfer_note: Note,
) -> Baseline:
    """The recorded expectations of this test's cell."""
    from pytest_llminfer.baselines.bundled import with_bundled
    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.plugin.baselines import open_store, recording, session_records

    return Baseline(
        engine=llminfer_engine,
        source=with_bundled(open_store(pytestconfig)),
        session=session_records(pytestconfig),
        hardware=llminfer_hardware,
        recording=recording(pytestconfig),
        judge=llminfer_judge,
        note=llminfer_note,
    )
