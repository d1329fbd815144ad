"""Figures that stand in the documentation and in the code are the same in both."""

from __future__ import annotations

import json
import re

import power_in_methods
import pytest

from pytest_llminfer.stats import codebooks, sequential
from tests.support.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "methods.md").read_text()


def text(cells: tuple[str, ...]) -> str:
    return " / ".join(cell or "–" for cell in cells)


@pytest.mark.parametrize("runs", [1, 4])
def test_power_at_the_end_is_that_which_the_benchmark_is_held_to(runs: int) -> None:
    row = [text(cells) for (of, _), cells in power_in_methods.AT_THE_END.items() if of == runs]
    assert f"| **exact, K = {runs}, α = .01** | {' | '.join(row)} |" in PAGE


@pytest.mark.parametrize("setting", power_in_methods.WITH_LOOKS, ids=str)
def test_power_with_looks_is_that_which_the_benchmark_is_held_to(setting: tuple[int, float, float]) -> None:
    runs, discordance, margin = setting
    row = [" / ".join(cell for cell in cells if cell) for cells in power_in_methods.WITH_LOOKS[setting]]
    assert f"| {runs} | {100 * discordance:g} % | {100 * margin:g} | {' | '.join(row)} |" in PAGE


def test_power_by_the_rules_in_use_is_that_which_the_benchmark_last_measured() -> None:
    measured = json.loads((REPOSITORY / "benchmarks" / "power_of_shipped.json").read_text())
    rows = re.findall(r"^\| (\d) \| (\d) % \| (\d) \| ([\d., ]+) \| ([\d., ]+) \| ([\d., ]+) \| ([\d., ]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == len(measured) / 4
    for runs, discordance, margin, *columns in rows:
        for drop, names, column in zip(
            (0, 2, 3, 5), ("asked pass fail", "asked pass fail", "fail", "asked fail"), columns, strict=True
        ):
            cell = measured[f"K={runs} d= {discordance}.0 m={margin} drop={drop}"]
            for name, shown in zip(names.split(), column.split(", "), strict=True):
                assert float(shown) == round(cell[name][0], len(shown.partition(".")[2]))


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
