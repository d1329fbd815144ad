"""The parts of a step's time that are judged one by one, each against recorded sessions that it may be compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING

from pytest_llminfer.stats.prior_bound import distance_above

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.families.throughput.session import Session

ALPHA = 0.05
"""Of either stage: a start beyond the first bound is suspicious, and fails if two fresh ones lie beyond the second."""
HOST_SHARE = 0.10
"""The host's part of a step that is smaller is not judged: what is left when the rest is taken away is mostly its error."""
SAME_HOST = math.log(1.15)
CLOCKS_MOVED, MOST_CORRECTION = 0.02, 0.10
"""How far the accelerator's own rate may lie below the record before it is allowed for, and up to where it is."""


@dataclass(frozen=True, slots=True)
class Gate:
    """How far a logarithm spreads from start to start, and the least distances that are suspicious and that fail."""

    spread: float
    suspicious: float
    failing: float


KERNELS = Gate(0.0025, 0.01, 0.015)
HOST = Gate(0.025, 0.03, 0.05)
PROCESSOR = Gate(0.05, 0.05, 0.10)
UNTRACED = Gate(0.05, 0.05, 0.10)
WALL = Gate(0.35, 0.10, 0.20)
"""Bare wall time: hosts with one accelerator differ by a factor of two, and a shared processor by as much from hour to hour."""
ANOTHER_HOST = Gate(0.10, 0.10, 0.20)
"""The host's part beside a frozen step, on a host that has no record: looked at only where the engine launches more than it did."""


class State(StrEnum):
    """Of one part."""

    STEADY = "steady"
    SUSPICIOUS = "suspicious"
    SLOWER = "slower"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a step: logarithms of its seconds in the recorded sessions, in this one (first), and in fresh starts after it.

    strict: what is suspicious in fresh starts fails, because the engine was seen to do more than it did.
    """

    name: str
    gate: Gate
    recorded: tuple[float, ...]
    starts: tuple[float, ...]
    strict: bool = False

    @property
    def change(self) -> float:
        """How much slower than the recorded median, as a share: of this start, or of the faster of the fresh ones."""
        return math.expm1(min(self.starts[1:] or self.starts[:1]) - median(self.recorded))

    @property
    def limit(self) -> float:
        """The share by which the faster of two fresh starts may be slower."""
        floor = self.gate.suspicious if self.strict else self.gate.failing
        return math.expm1(distance_above(self.recorded, prior=self.gate.spread, alpha=ALPHA, starts=2, floor=floor))

    @property
    def first_limit(self) -> float:
        """The share by which one start may be slower before it is suspicious."""
        return math.expm1(distance_above(self.recorded, prior=self.gate.spread, alpha=ALPHA, floor=self.gate.suspicious))

    @property
    def state(self) -> State:
        """Slower, if this start was suspicious and every fresh one lies beyond the limit."""
        centre = median(self.recorded)
        if math.expm1(self.starts[0] - centre) <= self.first_limit:
            return State.STEADY
        if len(self.starts) == 1:
            return State.SUSPICIOUS
        return State.SLOWER if self.change > self.limit else State.STEADY


def kernels(sessions: Sequence[Session], recorded: Sequence[Session]) -> Part | None:
    """The accelerator's busy seconds a step, on any host: less by what its own rate fell, a tenth at most."""
    known = [session.device for session in recorded if session.device is not None]
    now = [session.device for session in sessions if session.device is not None]
    if not known or len(now) < len(sessions):
        return None
    usual = median(device.rate for device in known)

    def seconds(busy: float, rate: float) -> float:
        fallen = math.log(rate / usual) if usual and rate else 0.0
        return math.log(busy) + (max(fallen, -MOST_CORRECTION) if fallen < -CLOCKS_MOVED else 0.0)

    return Part(
        "accelerator's busy seconds",
        KERNELS,
        tuple(math.log(device.busy_seconds) for device in known),
        tuple(seconds(device.busy_seconds, device.rate) for device in now),
    )


def of_this_host(session: Session, recorded: Sequence[Session], *, on_cpu: bool) -> list[Session]:
    """The recorded sessions of this host's class: its processor's model, and a frozen step within 15 %.

    On a processor that step moves with everything else that it does: there the model decides alone.
    """
    own = session.host
    if own is None:
        return []
    return [
        entry
        for entry in recorded
        if entry.host is not None
        and (entry.host.cpu, entry.host.reference) == (own.cpu, own.reference)
        and (on_cpu or abs(math.log(own.reference_seconds / entry.host.reference_seconds)) <= SAME_HOST)
    ]


def host(sessions: Sequence[Session], recorded: Sequence[Session], gate: Gate = HOST) -> Part | None:
    """The host's part of a step over a frozen step, among sessions of one host; None where it is too small to be judged."""
    known = [session for session in recorded if session.host_over_reference is not None]
    now = [session.host_over_reference for session in sessions if session.host_over_reference is not None]
    if not known or len(now) < len(sessions) or sessions[0].host_share <= HOST_SHARE:
        return None
    share = min(sessions[0].host_share, median(session.host_share for session in known))
    # What the accelerator's part is wrong by, the rest is wrong by too.
    spread = math.hypot(gate.spread, KERNELS.spread * (1 - share) / share)
    values = tuple(session.host_over_reference or 0.0 for session in known)
    return Part("host's part over a frozen step", replace(gate, spread=spread), values, tuple(now))


def over_reference(sessions: Sequence[Session], recorded: Sequence[Session], gate: Gate) -> Part | None:
    """A whole step over a frozen one, among sessions of one host."""
    known = [session.over_reference for session in recorded if session.over_reference is not None]
    now = [session.over_reference for session in sessions if session.over_reference is not None]
    if not known or len(now) < len(sessions):
        return None
    return Part("step over a frozen step", gate, tuple(known), tuple(now))


def wall(sessions: Sequence[Session], recorded: Sequence[Session]) -> Part:
    """Bare wall time, of a host that nobody knows."""
    return Part(
        "wall seconds",
        WALL,
        tuple(math.log(session.step_seconds) for session in recorded),
        tuple(math.log(session.step_seconds) for session in sessions),
    )
