"""What a benchmark hands back, how it is shown, and the machine that it ran on."""

from __future__ import annotations

import platform
import shlex
import statistics
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.hardware import detect

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("pytest", "torch", "transformers", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Result:
    """One number, lower is better. limit: None where the number only explains another. spread: n, and how far they lie apart."""

    what: str
    measured: float
    unit: str
    limit: float | None
    spread: str

    @property
    def outcome(self) -> str:
        """``within`` or ``OVER`` the limit; empty without one."""
        if self.limit is None:
            return ""
        return "within" if self.measured <= self.limit else "OVER"

    def columns(self) -> tuple[str, str, str, str]:
        """What, measured, limit, spread, as a table shows them."""
        limit = "" if self.limit is None else f"{self.limit:.4g}{self.unit} ({self.outcome})"
        return self.what, f"{self.measured:.4g}{self.unit}", limit, self.spread


def finish(results: Sequence[Result]) -> None:
    """Print the results and end the process: status 1 if one is over its limit."""
    for result in results:
        what, measured, limit, spread = result.columns()
        print(f"{what}: {measured}" + f", limit {limit}" * bool(limit) + f"; {spread}")
    sys.exit(any(result.outcome == "OVER" for result in results))


def mad(values: Sequence[float]) -> float:
    """The median absolute deviation from the median, unscaled."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def markdown(results: Sequence[Result], arguments: Sequence[str]) -> str:
    """The table, then what it was measured on and by which command."""
    header = ("what", "measured", "limit", "n, spread")
    rows = [header, ("---", "---:", "---", "---"), *(result.columns() for result in results)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    command = shlex.join(["python", "benchmarks/run.py", *arguments])
    return "\n".join([*lines, "", f"Measured on {machine()}.", f"Command: `{command}`."]) + "\n"


def machine() -> str:
    """Processor, cores and versions of what ran."""
    found = detect()
    words = [found.cpu or platform.machine(), f"{found.cores} cores", f"Python {platform.python_version()}"]
    if found.accelerator:
        words.insert(0, f"{found.count} x {found.accelerator}")
    for package in PACKAGES:
        try:
            words.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            words.append(f"no {package}")
    return ", ".join(words)
