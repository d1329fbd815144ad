"""A speed beside what is recorded of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.families.throughput.check import check_throughput, compare, is_throttled
from pytest_llminfer.families.throughput.counts import new_kernels
from pytest_llminfer.families.throughput.observe import sessions
from pytest_llminfer.families.throughput.parts import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.families.throughput.observe import Speed, Workload
    from pytest_llminfer.families.throughput.session import Session
    from pytest_llminfer.verdict import Verdict


def read(expected: Mapping[str, Any], *, workload: Workload) -> Mapping[str, Any]:
    """What is recorded, every session of which can be read.

    Raises:
        KeyError, TypeError, ValueError: one cannot.
    """
    sessions(expected, workload)
    return expected


@dataclass(frozen=True, slots=True)
class Judged:
    """A speed and the record that judges it.

    Attributes:
        speed: What was measured in this session.
        expected: The recorded entry.
        on_cpu: Whether the engine computes on the host's processor.
    """

    speed: Speed
    expected: Mapping[str, Any]
    on_cpu: bool

    def undecided(self, fresh: Sequence[Session]) -> bool:
        """Whether one more fresh start could tell more: a part is slow in this start, and in every fresh one so far."""
        sides = self._sides(fresh)
        if is_throttled(self.speed.session, sides["recorded"]):
            return False
        comparison = compare(**sides, untraced=self.speed.untraced)
        wanted = State.SLOWER if fresh else State.SUSPICIOUS
        return not comparison.only_doubt and any(part.state is wanted for part in comparison.parts)

    def verdict(self, fresh: Sequence[Session]) -> Verdict:
        """Of this start and the fresh ones."""
        workload = self.speed.workload
        return check_throughput(
            **self._sides(fresh),
            metric=f"{workload.phase} throughput, batch {workload.batch}",
            tokens_per_step=workload.tokens / workload.new_tokens,
            untraced=self.speed.untraced,
            new_kernels=new_kernels(self.speed.kernels, self.expected.get("kernels", {})),
        )

    def _sides(self, fresh: Sequence[Session]) -> dict[str, Any]:
        recorded = sessions(self.expected, self.speed.workload)
        return {"sessions": [self.speed.session, *fresh], "recorded": recorded, "on_cpu": self.on_cpu}
