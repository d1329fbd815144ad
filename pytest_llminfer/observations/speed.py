"""How long an engine's steps take, in its own process, and how long a frozen step takes there."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llminfer.observations.message import FromMessage


@dataclass(frozen=True, slots=True)
class StepTrace(FromMessage):
    """What the first rank's accelerator did in some steps (forward passes), all of them together.

    busy_seconds: the union of what ran on it. kernels, copies (fills too), synchronisations (waits of the host for it): how many.
    launches: calls that start work there; a captured graph's replay is one, with all its kernels. replays: those among them.
    names: how often each kernel ran.
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
    """A frozen decode step that comes with this package: mean wall seconds of one, and which step it is."""

    seconds: float
    version: str
