"""Starting and stopping an engine: afterwards none of its processes lives, and the device is as idle as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 2**20
TOLERANCE_BYTES = 64 * MIB
LIMIT_SECONDS = 30.0
LEAST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Leftover:
    """A process of a stopped engine that is still alive.

    Attributes:
        pid: Its process id.
        name: Its command line, cut to 80 characters.
        held_bytes: Bytes that would be free without it (its unique set size).
    """

    pid: int
    name: str
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop of an engine.

    Attributes:
        held_bytes: Unique set sizes of all its processes before the stop, added up.
        seconds: Until none of them was alive, or the whole wait.
        left: Processes that are still alive after the wait; empty for none.
        device_bytes: In use on its devices after the stop, by all processes; None on a CPU or where nvidia-smi does not answer.
    """

    held_bytes: int
    seconds: float
    left: tuple[Leftover, ...] = ()
    device_bytes: int | None = None


def check_idle(*, stops: Sequence[Stop], idle_bytes: int | None = None) -> Verdict:
    """Whether nothing of the engine is left after each stop (docs/methods.md#memory-gates).

    idle_bytes: in use on the devices before the engine's first start; the first stop's where it was not read then. If more was in
    use before than after the first stop, others were still there: that stop is the yardstick, and the outcome INCONCLUSIVE at
    best. On a CPU the processes that are left are all there is to see: the memory of one that ended is the kernel's again.
    """
    lines = [] if stops else ["nothing was compared: the engine was not stopped"]
    readings = [stop.device_bytes for stop in stops if stop.device_bytes is not None]
    freed = idle_bytes - readings[0] if idle_bytes is not None and readings else 0
    idle = readings[0] if readings and (idle_bytes is None or freed > TOLERANCE_BYTES) else idle_bytes
    for number, stop in enumerate(stops, 1):
        if not stop.held_bytes:
            lines.append(f"stop {number}: nothing was measured before it, so nothing can be missing after it")
        lines += [
            f"stop {number}: process {left.pid} ({left.name}) lives on and holds {left.held_bytes:,} bytes" for left in stop.left
        ]
        if stop.device_bytes is not None and idle is not None and abs(stop.device_bytes - idle) > TOLERANCE_BYTES:
            lines.append(f"stop {number}: {stop.device_bytes:,} bytes in use on the device, {stop.device_bytes - idle:+,} to idle")
    outcome = Outcome.FAIL if lines else Outcome.PASS
    if not lines and len(stops) < LEAST_ROUNDS:
        outcome, lines = Outcome.INCONCLUSIVE, [f"{len(stops)} rounds are too few: a leak may need several to show"]
    if freed > TOLERANCE_BYTES:
        lines.append(f"the device was not idle before the engine: {freed:,} bytes more were in use than after its first stop")
        outcome = Outcome.INCONCLUSIVE if outcome is Outcome.PASS else outcome
    left_bytes = sum(left.held_bytes for stop in stops for left in stop.left)
    return Verdict(
        outcome=outcome,
        claim="an engine that was stopped leaves nothing behind",
        key=f"{len(stops)} stops" if not left_bytes else f"{left_bytes / MIB:,.1f} MiB left",
        measurements=(
            Measurement("held before a stop", max((stop.held_bytes for stop in stops), default=0), "bytes", len(stops), "unique"),
            Measurement("held after it", left_bytes, "bytes", len(stops)),
            Measurement("slowest end", max((stop.seconds for stop in stops), default=0.0), "s", len(stops)),
            *((Measurement("device when idle", idle, "bytes", len(readings)),) if idle is not None else ()),
        ),
        threshold=f"no process, and the device within {TOLERANCE_BYTES // MIB} MiB of idle, {LIMIT_SECONDS:g} s after a stop",
        threshold_source="docs/methods.md#memory-gates",
        smallest_detectable=f"one process; on a device {TOLERANCE_BYTES // MIB} MiB",
        advice="look at what the process is: one that left its group (setsid) is ended by this session, and by nobody else",
        details=first_offenders(lines),
    )
