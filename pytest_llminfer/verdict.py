"""What a check says: the claim, the numbers behind it, and what to do next. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pytest_llminfer.printable import bounded, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHOWN = 8
"""Lines of a long list of differences that a verdict shows; the rest are counted."""
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Numbers that JSON has no word for, as the words that they cross as (those of ProtoJSON)."""

_IN_SCHEMA_1 = {
    "uncertainty": "spread",
    "limit": "threshold",
    "limit_source": "threshold_source",
    "minimum_detectable_effect": "smallest_detectable",
}
"""Names of data, and what they were in the first version of ``results.json``."""


class Outcome(StrEnum):
    """PASS passes, FAIL fails, INVALID is an unfair comparison, INCONCLUSIVE is too little evidence either way."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    INCONCLUSIVE = "inconclusive"
    FAIL = "fail"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number with what is needed to read it: its unit, how many values it stands for, and how far they spread.

    Attributes:
        name: What was measured, as the report prints it.
        value: The number, in ``unit``; text where there is no single number.
        unit: ``bytes``, ``nats``, ``tok/s`` and so on; empty for a share or a plain count.
        n: How many values it stands for; None where that has no meaning.
        spread: In words with its own unit ("95 % interval 0.81 to 0.87", "MAD 1.2 ms"); empty where the number is exact.
        baseline: What it is compared with, recorded or predicted, in ``unit``; None without one. Data for reports, not part of the
            text.
        limit: The value at which the outcome changes, in ``unit``; None without one. Data for reports, not part of the text.
        shown: Text that replaces value and unit where the usual form does not fit, such as a share as "97.12%"; empty for the usual
            form.
    """

    name: str
    value: float | int | str
    unit: str = ""
    n: int | None = None
    spread: str = ""
    baseline: float | int | None = None
    limit: float | int | None = None
    shown: str = ""

    def __str__(self) -> str:
        value = (
            f"{self.value:,.6g}"
            if isinstance(self.value, float)
            else f"{self.value:,}"
            if isinstance(self.value, int)
            else self.value
        )
        value = self.shown or (f"{value} {self.unit}" if self.unit else value)
        text = f"{self.name}: {value}"
        extras = [f"n={self.n}"] * (self.n is not None) + [self.spread] * bool(self.spread)
        return f"{text} ({', '.join(extras)})" if extras else text

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold; a number that is not finite is "NaN", "Infinity" or "-Infinity"."""
        return {
            "name": self.name,
            "value": to_json(self.value),
            "unit": self.unit,
            "n": None if self.n is None else int(self.n),
            "uncertainty": self.spread,
            "baseline": to_json(self.baseline),
            "limit": to_json(self.limit),
            "shown": self.shown,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The measurement whose :meth:`to_dict` is ``data``.

        Raises:
            KeyError: a field is missing.
        """
        return cls(
            name=data["name"],
            value=from_json(data["value"]),
            unit=data["unit"],
            n=data["n"],
            spread=_named(data, "uncertainty"),
            baseline=from_json(data["baseline"]),
            limit=from_json(data["limit"]),
            shown=data["shown"],
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a check.

    Attributes:
        outcome: PASS, FAIL, INCONCLUSIVE or INVALID.
        claim: What was tested, as a sentence that is true if the outcome is PASS.
        key: The one short number for the summary table ("88.2 %", "1,412 tok/s").
        measurements: Every number behind the outcome, in the order in which the message prints them.
        threshold: What separates PASS from FAIL, in words and numbers.
        threshold_source: Where the threshold comes from: a heading of docs/methods.md, a record, or an option.
        smallest_detectable: The smallest effect that the test could have seen; "exact" where any difference shows.
        advice: What to do next if the outcome is not PASS; empty for nothing.
        details: Further lines, the most telling first; empty if there is nothing to add.
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
        return printable(bounded("\n".join(lines)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold: what crosses processes, and stands in reports."""
        return {
            "outcome": self.outcome.value,
            "claim": self.claim,
            "key": self.key,
            "measurements": [measurement.to_dict() for measurement in self.measurements],
            "limit": self.threshold,
            "limit_source": self.threshold_source,
            "minimum_detectable_effect": self.smallest_detectable,
            "advice": self.advice,
            "details": list(self.details),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """The verdict whose :meth:`to_dict` is ``data``.

        Raises:
            KeyError: a field is missing. ValueError: an outcome that is none.
        """
        return cls(
            outcome=Outcome(data["outcome"]),
            claim=data["claim"],
            key=data["key"],
            measurements=tuple(map(Measurement.from_dict, data["measurements"])),
            threshold=_named(data, "limit"),
            threshold_source=_named(data, "limit_source"),
            smallest_detectable=_named(data, "minimum_detectable_effect"),
            advice=data["advice"],
            details=tuple(data["details"]),
        )


def first_offenders(lines: Sequence[str], *, shown: int = SHOWN) -> tuple[str, ...]:
    """The first ``shown`` lines, and one that counts the rest."""
    rest = len(lines) - shown
    return (*lines[:shown], *((f"and {rest:,} more",) if rest > 0 else ()))


def _named(data: Mapping[str, Any], name: str) -> Any:
    before = _IN_SCHEMA_1[name]
    return data[before] if name not in data and before in data else data[name]


def to_json(value: Any) -> Any:
    """A number as one of Python's own, whatever subclass or NumPy scalar it was, or as its word where it is not finite.

    Text, None and booleans stay as they are.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return int(value)


def from_json(value: Any) -> Any:
    """What :func:`to_json` was given."""
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
