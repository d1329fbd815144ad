"""What the accelerator is given to do at a step, counted: a lost graph, an eager fallback or one copy more shows at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.families.throughput.session import Device, Session

MORE = 0.02
"""As a share of the most that was recorded."""
_SHOWN, _NAME_LENGTH = 4, 80


@dataclass(frozen=True, slots=True)
class Count:
    """How many a step: now, and the most that any recorded session had."""

    name: str
    now: float
    recorded: float

    @property
    def grew(self) -> bool:
        """By more than 2 %."""
        return self.now > self.recorded * (1 + MORE)

    def __str__(self) -> str:
        return f"{self.name} a step: {self.now:,.1f}, recorded {self.recorded:,.1f}"


def compare(session: Session, recorded: Sequence[Session]) -> tuple[Count, ...]:
    """What runs on the accelerator and waits for it, and the calls that start it; empty where one side has not been traced."""
    known = [entry.device for entry in recorded if entry.device is not None]
    if session.device is None or not known:
        return ()
    return tuple(
        Count(name, of(session.device), max(map(of, known)))
        for name, of in (("kernels, copies and waits", _work), ("launches", _launches))
    )


def _work(device: Device) -> float:
    return (device.kernels + device.copies + device.synchronisations) / device.steps


def _launches(device: Device) -> float:
    return device.launches / device.steps


def new_kernels(now: Mapping[str, int], recorded: Mapping[str, int]) -> str:
    """Names of kernels that run more often than in the record, the most frequent first; empty where there are none."""
    more = {name: count - recorded.get(name, 0) for name, count in now.items() if count > recorded.get(name, 0) * (1 + MORE)}
    names = sorted(more, key=lambda name: (-more[name], name))
    shown = [f"{name[:_NAME_LENGTH]} (+{more[name]})" for name in names[:_SHOWN]]
    return ", ".join([*shown, *([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])])
