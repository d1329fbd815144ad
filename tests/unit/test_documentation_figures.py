"""Figures that stand in the documentation and in the code are the same in both."""

from __future__ import annotations

import json
import re

import pytest
import simulated_runs

from pytest_llminfer.stats import codebooks, sequential
from tests.support.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "methods.md").read_text()
MEASURED = json.loads((REPOSITORY / "benchmarks" / "power_of_shipped.json").read_text())


def shown(setting: simulated_runs.Setting, names: str) -> list[float]:
    return [MEASURED[str(setting)][name][0] for name in names.split()]


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(", ")]


def test_power_is_that_which_the_benchmark_last_measured() -> None:
    settings = simulated_runs.settings()["nothing changed, and drops"]
    rows = re.findall(
        r"^\| (\d) \| (\d+) % \| (\d) \| ([\d., ]+) \| ([\d., ]+) \| ([\d., ]+) \| ([\d., ]+) \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == len(settings) / 4
    names = ("asked pass fail", "asked pass fail", "pass fail", "asked fail")
    for number, (runs, discordance, margin, *columns) in enumerate(rows):
        for setting, wanted, column in zip(settings[4 * number : 4 * number + 4], names, columns, strict=True):
            assert (setting.runs, setting.margin, setting.noise.recorded) == (int(runs), int(margin) / 100, int(discordance) / 100)
            assert numbers(column) == pytest.approx(shown(setting, wanted), abs=0.51 if "asked" in wanted else 0.051)


def test_rates_under_near_ties_decided_anew_are_those_measured() -> None:
    settings = simulated_runs.settings()["near ties decided anew, nothing lost"]
    rows = re.findall(r"^\| ([\d.]+) % \| ([\d.]+) %(, drawn anew)? \| ([\d., ]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == len(settings) / 2
    for (recorded, anew, redrawn, column, alone), ours, theirs in zip(rows, settings[::2], settings[1::2], strict=True):
        assert (ours.noise.recorded, ours.noise.rerolled) == pytest.approx((float(recorded) / 100, float(anew) / 100))
        assert (ours.noise.redrawn, theirs.alone) == (bool(redrawn), True)
        assert numbers(column) == pytest.approx(shown(ours, "asked pass fail"), abs=0.51)
        assert float(alone) == pytest.approx(MEASURED[str(theirs)]["fail"][0], abs=0.006)


@pytest.mark.parametrize("alpha", [0.01, 0.001, 0.05])
def test_boundaries_of_the_looks_are_those_of_the_code(alpha: float) -> None:
    (row,) = re.findall(rf"^\| {f'{alpha:g}'[1:]} \| ([\d. ]+) \|$", PAGE, re.MULTILINE)
    assert [float(shown) for shown in row.split()] == pytest.approx(
        [sequential.boundary(alpha, look) for look in range(1, 9)], rel=1e-3
    )


def test_the_codes_of_nf4_are_those_of_the_definition() -> None:
    (listed,) = re.findall(r"(    −1, −\.69.*?)\n\n", PAGE, re.DOTALL)
    shown = [float(code.replace("−", "-")) for code in listed.split(",")]
    assert shown == pytest.approx(codebooks.nf4().tolist(), abs=2e-7)
