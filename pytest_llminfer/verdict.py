"""What a check says: the claim, the numbers behind it, and what to do next. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN = 8
"""Lines of a long list of differences that a verdict shows; the rest are counted."""


class Outcome(StrEnum):
    """PASS passes, FAIL fails, INVALID is an unfair comparison, INCONCLUSIVE is too little evidence either way."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    INCONCLUSIVE = "inconclusive"
    FAIL = "fail"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number with what is needed to read it: its unit, how many values it stands for, and how far they spread.

    ``spread`` is in words with its own unit ("95 % interval 0.81 to 0.87", "MAD 1.2 ms"); empty where the number is exact.
    """

    name: str
    value: float | int | str
    unit: str = ""
    n: int | None = None
    spread: str = ""

    def __str__(self) -> str:
        value = (
            f"{self.value:,.6g}"
            if isinstance(self.value, float)
            else f"{self.value:,}"
            if isinstance(self.value, int)
            else self.value
        )
        text = f"{self.name}: {value}{' ' + self.unit if self.unit else ''}"
        extras = [f"n={self.n}"] * (self.n is not None) + [self.spread] * bool(self.spread)
        return f"{text} ({', '.join(extras)})" if extras else text


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a check.

    claim: what was tested, as a sentence that is true if the verdict is PASS.
    key: the one short number for the summary table ("88.2 %", "1,412 tok/s").
    threshold: what separates PASS from FAIL; threshold_source: where that comes from.
    smallest_detectable: the smallest effect that the test could have seen; "exact" where any difference shows.
    advice: what to do next if this is not a PASS.
    details: further lines, the most telling first.
    """

    outcome: Outcome
    claim: str
    key: str
    measurements: tuple[Measurement, ...]
    threshold: str
    threshold_source: str
    smallest_detectable: str
    advice: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The message of a failed test, in one fixed order."""
        lines = [f"{self.outcome.name}: {self.claim}"]
        lines += [f"  {line}" for line in self.details]
        lines += [f"  {measurement}" for measurement in self.measurements]
        lines.append(f"  threshold: {self.threshold} (from {self.threshold_source})")
        lines.append(f"  smallest effect this could have seen: {self.smallest_detectable}")
        if self.outcome is not Outcome.PASS and self.advice:
            lines.append(f"  what to do: {self.advice}")
        return "\n".join(lines)


def first_offenders(lines: Sequence[str], *, shown: int = SHOWN) -> tuple[str, ...]:
    """The first ``shown`` lines, and one that counts the rest."""
    rest = len(lines) - shown
    return (*lines[:shown], *((f"and {rest:,} more",) if rest > 0 else ()))
