"""Settings: an upgrade that moves a default is shown field by field, before anybody wonders about speed or memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.families.settings.check import check_settings
from pytest_llminfer.families.settings.observe import PARTS, observe

if TYPE_CHECKING:
    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.plugin.judging import Judge

OF_ENGINES = pytest.mark.llminfer_only(over_http=False)
"""A server reports what is in force, and not what its defaults are."""
PARAMETERS = [pytest.param(part, marks=OF_ENGINES if part == "defaults" else ()) for part in PARTS]


@pytest.mark.llminfer_needs("settings")
@pytest.mark.parametrize("part", PARAMETERS)
def test_settings_are_as_recorded(engine: Engine, baseline: Baseline, judge: Judge, part: str) -> None:
    """``resolved``: the configuration in force, on this hardware. ``defaults``: what the engine does by default."""
    found, resolved = observe(engine, None, part=part), part == "resolved"
    expected = baseline.expected(
        f"settings_{part}",
        observe=partial(observe, part=part),
        conditions={},
        n=len(found),
        per_hardware=True,
        per_parallelism=resolved,
        arguments="all" if resolved else "none",
    )
    then = baseline.versions(f"settings_{part}", per_hardware=True, per_parallelism=resolved)
    judge(check_settings(found=found, expected=expected, what=PARTS[part], then=then, now=engine.info.versions))
