"""Settings of the tests without an engine."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_installer_configuration(no_installer_configuration: None) -> None:
    """Every test here, so that none can forget it: what a machine's pip is told must not decide a test of the installer."""
