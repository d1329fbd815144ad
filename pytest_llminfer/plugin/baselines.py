"""The session's baselines: one store, and what this process has recorded."""

from __future__ import annotations

import pytest

from pytest_llminfer.baselines.expectations import Recording, SessionRecords
from pytest_llminfer.baselines.store import Store
from pytest_llminfer.plugin.session import settings_of

STORE = pytest.StashKey[Store]()
RECORDS = pytest.StashKey[SessionRecords]()


def open_store(config: pytest.Config) -> Store:
    """The project's own baselines."""
    return config.stash.setdefault(STORE, Store(settings_of(config).baselines.directory))


def session_records(config: pytest.Config) -> SessionRecords:
    """What this process has recorded so far."""
    return config.stash.setdefault(RECORDS, SessionRecords())


def recording(config: pytest.Config) -> Recording:
    """Whether and where this session records."""
    settings = settings_of(config).baselines
    versions = {"pytest": pytest.__version__}
    return Recording(folder=settings.directory, mode=settings.update, root=config.rootpath, versions=versions)
