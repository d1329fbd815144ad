"""What is kept of one measurement of a phase: a step's seconds on the accelerator, on the host, and of a frozen step beside it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.observations.speed import StepTrace

COUNTS = ("kernels", "copies", "synchronisations", "launches")
LEAST_HOST_SHARE = 0.01
"""The host's part of a step is taken for no less: wall and busy seconds are measured one after the other."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where a session ran.

    Attributes:
        cpu: The processor's model name.
        reference_seconds: Median wall seconds of a frozen step there.
        reference: Version of that frozen step.
    """

    cpu: str
    reference_seconds: float
    reference: str


@dataclass(frozen=True, slots=True)
class Device:
    """What the accelerator did in the traced steps.

    Attributes:
        busy_seconds: Seconds of one step in which it was busy.
        rate: What it can do right now, in the unit that bounds the phase: bytes or floating-point operations per second.
        steps: How many steps were traced.
        kernels: Kernels of all these steps.
        copies: Copies and fills of all these steps.
        synchronisations: Waits of the host for it, in all these steps.
        launches: Calls that start work on it, in all these steps.
    """

    busy_seconds: float
    rate: float
    steps: int
    kernels: int
    copies: int
    synchronisations: int
    launches: int


@dataclass(frozen=True, slots=True)
class Session:
    """One start of an engine, one phase.

    Attributes:
        step_seconds: Wall seconds of a step, median of the blocks.
        blocks: How many blocks there were.
        over_reference: Median of ln(block / frozen steps around it); None for an older record of wall time alone.
        host_over_reference: The same without the accelerator's busy seconds; None where they are not known.
        host: Where it ran; None for an older record.
        device: What the accelerator did; None without one, or where it cannot be traced.
    """

    step_seconds: float
    blocks: int
    over_reference: float | None = None
    host_over_reference: float | None = None
    host: Host | None = None
    device: Device | None = None

    @property
    def host_share(self) -> float:
        """The host's part of a step, at least one in a hundred; 1 where there is no accelerator."""
        return 1.0 if self.device is None else max(1 - self.device.busy_seconds / self.step_seconds, LEAST_HOST_SHARE)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON for a baseline."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], *, batch_tokens: int, steps: int) -> Session:
        """The inverse of :meth:`to_dict`; of a record in tokens a second, its wall time.

        batch_tokens, steps: tokens of one block, and the steps in which it computes them.
        """
        if "tokens_per_second" in entry:
            return cls(batch_tokens / float(entry["tokens_per_second"]) / steps, int(entry["rounds"]))
        values = {field.name: entry[field.name] for field in fields(cls)}
        host, device = values.pop("host"), values.pop("device")
        return cls(**values, host=Host(**host) if host else None, device=Device(**device) if device else None)


def summarise_session(
    *, blocks: Sequence[float], references: Sequence[float], cpu: str, reference: str, trace: StepTrace | None, rate: float
) -> Session:
    """A session of its parts.

    blocks: wall seconds of a step, of each block. references: of a frozen step, one before each block and one after the last.
    trace: None without an accelerator whose activity can be read. rate: as in ``Device``.

    Raises:
        ValueError: no block, or not one reference more than blocks.
    """
    if not blocks or len(references) != len(blocks) + 1:
        raise ValueError(f"{len(blocks)} blocks with {len(references)} reference steps around them")
    around = [fmean(pair) for pair in pairwise(references)]

    def over(own_seconds: float) -> float:
        """Median of the logarithm of what is left of a block without ``own_seconds``."""
        return median(
            math.log(max(block - own_seconds, LEAST_HOST_SHARE * block) / beside)
            for block, beside in zip(blocks, around, strict=True)
        )

    device = None
    if trace is not None:
        counts = {name: getattr(trace, name) for name in COUNTS}
        device = Device(busy_seconds=trace.busy_seconds / trace.steps, rate=rate, steps=trace.steps, **counts)
    return Session(
        step_seconds=median(blocks),
        blocks=len(blocks),
        over_reference=over(0.0),
        host_over_reference=over(device.busy_seconds) if device else None,
        host=Host(cpu, median(references), reference),
        device=device,
    )
