"""What tests of the plugin share: a project in a temporary folder, served by the simulated engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

MODES = {"plain": (), "n0": ("-n0",), "n2": ("-n2",)}


@pytest.fixture(params=["plain", "n2"])
def mode(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Without pytest-xdist's option, and with two processes."""
    return MODES[request.param]


@pytest.fixture(params=list(MODES))
def every_mode(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """With -n0 as well: pytest-xdist is there and distributes nothing, so the life of one record stands for all."""
    return MODES[request.param]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run pytest in a process of its own on the simulated engine; later arguments win over earlier ones."""
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")

    def run(*arguments: str, engine: str = "simulated") -> pytest.RunResult:
        return pytester.runpytest_subprocess(f"--engine={engine}", *arguments)

    return run
