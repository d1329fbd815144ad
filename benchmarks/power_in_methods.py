"""What docs/methods.md#power prints for the accuracy test: false alarms, power and questions asked, by settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llminfer.stats import sequential

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_THE_END = {
    (1, 0.03): ("0.6", "26", "80", "98", "100"),
    (1, 0.06): ("0.7", "15", "57", "90", "100"),
    (1, 0.10): ("0.8", "9.5", "38", "74", "99"),
    (4, 0.03): ("0.7", "52", "97", "100", ""),
    (4, 0.06): ("0.8", "30", "84", "99", ""),
    (4, 0.10): ("0.9", "16", "65", "95", ""),
}
"""Recorded runs and discordance → percent of runs that fail at drops of 0, 1, 2, 3 and 5 points, with one look at the end."""

WITH_LOOKS = {
    (1, 0.03, 0.03): (("462", "99.7", "0.3"), ("859", "34", "66"), ("", "", "96"), ("484", "", "100")),
    (1, 0.03, 0.02): (("659", "98.5", "0.6"), ("995", "5", "78"), ("", "", "98"), ("487", "", "100")),
    (1, 0.06, 0.02): (("847", "87", "0.6"), ("1126", "5", "52"), ("", "", "88"), ("587", "", "100")),
    (4, 0.03, 0.03): (("362", "99.7", "0.3"), ("590", "20", "80"), ("", "", "98"), ("295", "", "100")),
    (4, 0.03, 0.02): (("573", "98.5", "0.7"), ("668", "4", "95"), ("", "", "99.5"), ("295", "", "100")),
    (4, 0.06, 0.03): (("476", "99.0", "1.0"), ("768", "22", "78"), ("", "", "98"), ("377", "", "100")),
}
"""Recorded runs, discordance and margin → questions asked, passes and fails at drops of 0, 2, 3 and 5 points, with eight looks by
the two neighbouring rules of that page."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting, and what the page gives for it: {"fail", "pass" (in %), "asked"}: (number, half of its last digit)."""

    runs: int
    discordance: float
    drop: float
    margin: float
    looks: int
    shipped: bool
    stated: tuple[tuple[str, float, float], ...]


def at_the_end() -> Iterator[Cell]:
    """The settings with one look."""
    for (runs, discordance), row in AT_THE_END.items():
        for drop, text in zip((0.0, 0.01, 0.02, 0.03, 0.05), row, strict=True):
            yield Cell(runs, discordance, drop, 0.02, looks=1, shipped=True, stated=stated(fail=text))


def with_looks(*, shipped: bool) -> Iterator[Cell]:
    """The settings with eight looks. shipped: to be judged by the rules in use and not by the neighbouring ones."""
    for (runs, discordance, margin), row in WITH_LOOKS.items():
        for drop, (asked, passed, failed) in zip((0.0, 0.02, 0.03, 0.05), row, strict=True):
            numbers = stated(asked=asked, passed=passed, fail=failed)
            yield Cell(runs, discordance, drop, margin, sequential.LOOKS, shipped, numbers)


def stated(asked: str = "", passed: str = "", fail: str = "") -> tuple[tuple[str, float, float], ...]:
    """Numbers as the page prints them, each with half of its last digit."""
    texts = {"asked": asked, "pass": passed, "fail": fail}
    return tuple((name, float(text), 0.05 if "." in text else 0.5) for name, text in texts.items() if text)
