"""The next cell's workers, started while this one is tested: importing an engine takes longer than most tests.

Only where there are GPUs that the next cell can have now: on a processor the import would disturb what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.errors import LlminferError
from pytest_llminfer.plugin.matrix import cell_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.engines.pool import Lease
    from pytest_llminfer.engines.replica import Launch
    from pytest_llminfer.engines.worker_process import WorkerProcess
    from pytest_llminfer.spec import EngineSpec

ORDER = pytest.StashKey["tuple[EngineSpec, ...]"]()
"""The cells that have tests in this session, in the order in which they run."""
STARTED = pytest.StashKey["Started"]()
HELD = pytest.StashKey["dict[str, str]"]()
"""The GPUs that this session's process holds, by their id, each with the cell that it is held for."""

SETTLE_SECONDS = 120.0
"""A longer import continues while a speed is measured; the device's own rate then shows it."""


@dataclass(frozen=True, slots=True)
class Started:
    """Workers that are importing their engine before their cell's turn.

    Attributes:
        spec: The cell that they are for.
        lease: The GPUs that they will use, already held.
        workers: One per replica.
    """

    spec: EngineSpec
    lease: Lease
    workers: tuple[WorkerProcess, ...]


def follow(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Note the order of the cells, as their tests will run."""
    cells = (cell_of(item) for item in items)
    config.stash[ORDER] = tuple(dict.fromkeys(cell for cell in cells if cell is not None))


def following(config: pytest.Config, spec: EngineSpec) -> EngineSpec | None:
    """The cell after this one, where its workers may be started ahead."""
    order = config.stash.get(ORDER, ())
    if hasattr(config, "workerinput") or spec not in order[:-1]:
        return None
    after = order[order.index(spec) + 1]
    # A server imports its engine itself, and an environment that is yet to be made is made when it is needed.
    return None if after.serve or after.is_remote or "==" in after.environment else after


def start(config: pytest.Config, launches: Sequence[Launch], lease: Lease) -> None:
    """Start these workers; a cell that cannot be started ahead says so when it is launched."""
    workers: list[WorkerProcess] = []
    try:
        for launch in launches:
            workers.append(replace(launch, lease=lease).prestart())  # noqa: PERF401 - those started before an error are ended
    except LlminferError:
        for worker in workers:
            worker.kill()
        lease.release()
        return
    config.stash[STARTED] = Started(launches[0].spec, lease, tuple(workers))


def take(config: pytest.Config, spec: EngineSpec | None) -> Started | None:
    """The workers started for this cell; those of another cell, which was skipped, are ended."""
    started = config.stash.get(STARTED, None)
    if started is None:
        return None
    del config.stash[STARTED]
    if started.spec == spec:
        return started
    for worker in started.workers:
        worker.kill()
    started.lease.release()
    return None


def settle(config: pytest.Config) -> None:
    """Wait until the workers of the next cell have imported their engine: nothing else may run while a speed is measured."""
    started = config.stash.get(STARTED, None)
    for worker in started.workers if started else ():
        worker.settle(SETTLE_SECONDS)


def close(config: pytest.Config) -> None:
    """End the workers that no cell has taken."""
    started = config.stash.get(STARTED, None)
    if started is not None:
        for worker in started.workers:
            worker.kill()
        started.lease.release()
