"""Several replicas asked at once: prompts split over them, answers collected in order, none lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llminfer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Progress = Callable[[str, int, int], None]

T = TypeVar("T")


def deal(count: int, replicas: int) -> list[list[int]]:
    """Indices of ``count`` items for each replica, round-robin: every index once, and shares that differ by at most one."""
    return [list(range(number, count, replicas)) for number in range(replicas)]


def collect(shares: Sequence[Sequence[int]], answers: Sequence[Sequence[T]], *, whose: str) -> list[T]:
    """The answers in the order of the items.

    A missing answer cannot be distinguished from one that has taken another's place, so none of them is used then.

    Raises:
        EngineError: a replica of the cell ``whose`` returned more or fewer answers than it got items.
    """
    placed: dict[int, T] = {}
    for number, (share, given) in enumerate(zip(shares, answers, strict=True)):
        if len(share) != len(given):
            replica = f" of replica {number}" if len(shares) > 1 else ""
            raise EngineError(f"{whose}: asked {len(share)} prompts, {len(given)} answers{replica} came back")
        placed.update(zip(share, given, strict=True))
    return [placed[index] for index in range(len(placed))]


def at_once(actions: Sequence[Callable[[], T]]) -> list[T]:
    """What each action returns, all run at the same time; when any fails the first error is raised once all have ended."""
    if len(actions) == 1:
        return [actions[0]()]
    with ThreadPoolExecutor(len(actions), thread_name_prefix="llminfer-replica") as executor:
        futures = [executor.submit(action) for action in actions]
    return [future.result() for future in futures]


class SharedProgress:
    """One bar for several replicas: what they have done together."""

    def __init__(self, progress: Progress, replicas: int) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done = [(0, 0)] * replicas

    def of(self, index: int) -> Progress:
        """What the replica with this number reports to."""

        def report(phase: str, done: int, total: int) -> None:
            with self._lock:
                self._done[index] = (done, total)
                finished, wanted = (sum(column) for column in zip(*self._done, strict=True))
                self._progress(phase, finished, wanted)

        return report


def first_of_equal(answers: Sequence[Any]) -> tuple[Any, int | None]:
    """The first answer, and the number of the first replica that gave another one."""
    other = next((number for number, answer in enumerate(answers) if answer != answers[0]), None)
    return answers[0], other


def of_the_fullest(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report of memory out of those of all replicas: each figure that all give is that of the replica with the most."""
    most = {
        name: max(report[name] for report in reports)
        for name, value in reports[0].items()
        if isinstance(value, int) and all(isinstance(report.get(name), int) for report in reports)
    }
    return reports[0] | most
