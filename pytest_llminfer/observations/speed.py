"""How long an engine's steps take, in its own process, and how long a frozen step takes there."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llminfer.observations.message import FromMessage


@dataclass(frozen=True, slots=True)
class StepTrace(FromMessage):
    """What the first rank's accelerator did in some steps (forward passes), all of them together.

    Attributes:
        steps: How many steps.
        busy_seconds: Seconds in which anything ran on it.
        kernels: How many kernels ran.
        copies: How many copies and fills.
        synchronisations: How often the host waited for it.
        launches: Calls that start work there; the replay of a captured graph is one, with all its kernels.
        replays: Replays of captured graphs among them.
        names: Name of a kernel to how often it ran; empty where the trace does not name them.
    """

    steps: int
    busy_seconds: float
    kernels: int
    copies: int
    synchronisations: int
    launches: int
    replays: int
    names: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReferenceStep(FromMessage):
    """A frozen decode step that comes with this package.

    Attributes:
        seconds: Mean wall seconds of one such step.
        version: Which step it is.
    """

    seconds: float
    version: str
