"""Settings of all tests of the harness."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.support")

# The oldest pytest is tested without it.
with contextlib.suppress(ModuleNotFoundError):
    from hypothesis import settings

    # Examples take as long as the machine lets them: other tests run beside these.
    settings.register_profile("shared machine", deadline=None)
    settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def _inner_sessions_without_what_they_do_not_use() -> Iterator[None]:
    """Sessions that tests start need no plugin of other tests; hypothesis alone is imported whole at the end of each process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:anyio")
        # Without kept bytecode every session and every worker compiles this package anew: a third of a short session.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture
def no_installer_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut pip and uv off from the configuration of the machine and of the user who runs the tests."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("LLMINFER_CONSTRAINTS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # pip then reads no file at all
    monkeypatch.setenv("UV_NO_CONFIG", "1")
