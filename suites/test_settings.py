"""Settings: an upgrade that moves a default is shown field by field, before anybody wonders about speed or memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.settings.check import check_settings

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.plugin.judging import Judge
    from pytest_llminfer.plugin.recording import Baseline


@pytest.mark.llminfer_needs("settings")
@pytest.mark.parametrize("part", ["resolved", pytest.param("defaults", marks=pytest.mark.llminfer_only(over_http=False))])
def test_settings_are_as_recorded(engine: Engine, baseline: Baseline, judge: Judge, part: str) -> None:
    """``resolved``: the configuration in force, on this hardware. ``defaults``: what the engine does where nobody says anything."""
    found = engine.settings()[part]
    resolved = part == "resolved"
    what = "resolved settings" if resolved else "defaults"
    if not found:
        raise UnsupportedError(f"{'a server' if engine.spec.over_http else engine.spec.engine} does not tell its {what}")
    expected = baseline.expected(
        f"settings_{part}",
        observed=lambda _: found,
        conditions={"engine_args": dict(engine.engine_args)} if resolved else {},
        n=len(found),
        per_hardware=True,
        per_parallelism=resolved,
    )
    then = baseline.versions(f"settings_{part}", per_hardware=True, per_parallelism=resolved)
    judge(check_settings(found=found, expected=expected, what=what, then=then, now=engine.info.versions))
