"""An engine that is stopped gives everything back: its processes are gone, and the device is as idle as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.families.shutdown.check import LEAST_ROUNDS, check_idle
from pytest_llminfer.families.shutdown.observe import stop_and_start
from pytest_llminfer.plugin.session import settings_of

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.plugin.judging import Judge

MOST_SECONDS = 15.0
"""Bytes that a load may take unless all tests are requested: three more loads follow."""


@pytest.mark.llminfer_only(quantization="none", parallel=False)
@pytest.mark.llminfer_needs("ranks")
def test_nothing_is_left_after_three_starts_and_stops(engine: Engine, judge: Judge, pytestconfig: pytest.Config) -> None:
    """How weights are stored makes no difference to it. An engine that loads slowly is stopped with ``--llminfer-strict`` alone."""
    seconds = sum(engine.info.load_seconds.values())
    if seconds > MOST_SECONDS and not settings_of(pytestconfig).session.strict:
        pytest.skip(
            f"three loads of {seconds:.0f} s each, where {MOST_SECONDS:.0f} s are the most; --llminfer-strict asks for them"
        )
    judge(check_idle(stops=stop_and_start(engine, rounds=LEAST_ROUNDS), idle_bytes=engine.idle_bytes))
