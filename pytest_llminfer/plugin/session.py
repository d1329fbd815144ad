"""The settings and cells of a session, read when the first test asks for an engine: a session without one pays for neither."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_llminfer.plugin.options import Options
    from pytest_llminfer.spec import EngineSpec

_SETTINGS = pytest.StashKey["Options"]()
_CELLS = pytest.StashKey["tuple[EngineSpec, ...]"]()


def settings_of(config: pytest.Config) -> Options:
    """Every setting.

    Raises:
        pytest.UsageError: an option that cannot be read.
    """
    if _SETTINGS not in config.stash:
        from pytest_llminfer.plugin import hints
        from pytest_llminfer.plugin.options import resolve

        with hints.in_usage_errors(config):
            config.stash[_SETTINGS] = resolve(config)
    return config.stash[_SETTINGS]


def cells_of(config: pytest.Config) -> tuple[EngineSpec, ...]:
    """The cells under test, each once, in the order of the options.

    Raises:
        pytest.UsageError: an option that cannot be read, or a cell that cannot be.
    """
    if _CELLS not in config.stash:
        from pytest_llminfer.plugin import hints
        from pytest_llminfer.plugin.cells import expand

        settings = settings_of(config)
        with hints.in_usage_errors(config):
            config.stash[_CELLS] = expand(settings.matrix)
    return config.stash[_CELLS]


def refuse_platform(kind: type[Exception]) -> None:
    """Raise this kind of error where engines cannot be started: locks, process groups and /proc are as on Linux."""
    if sys.platform != "linux":
        raise kind(
            f"pytest-llminfer starts engines on Linux alone, and this is {sys.platform}; tests that ask for no engine run here, "
            "and so does suites/test_checkpoint.py with --llminfer-checkpoint=PATH"
        )


def is_used(config: pytest.Config) -> bool:
    """Whether anything of this session has asked for settings: an option, or a test."""
    return _SETTINGS in config.stash
