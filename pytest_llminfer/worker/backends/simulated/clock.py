"""The seconds that an accelerator and its host would have taken: modelled, since NumPy has neither kernels nor launches."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llminfer.worker.backends.simulated.faults import Faults

BUSY_SECONDS, HOST_SECONDS, REFERENCE_SECONDS = 1.2e-3, 1.8e-3, 2.0e-3
"""Of a step: the accelerator's part, the host's, and the frozen step."""
START_SPREAD, BLOCK_SPREAD = {"busy": 0.0006, "host": 0.01}, 0.02
"""Standard deviations of logarithms: from start to start, and of one timing."""
_COPIES, _WAITS = 2, 1
_KERNELS = {"attention": 24, "linear": 96, "norm": 60}
RATE = 4e12


class Clock:
    """One start's own seconds: drawn when it is made, then with the noise of each timing; ``faults`` stretch them for real."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._noise = random.Random()  # noqa: S311 - noise, not a secret; each start draws its own
        self._busy = BUSY_SECONDS * self._noise.lognormvariate(0, START_SPREAD["busy"])
        self._host = HOST_SECONDS * self._noise.lognormvariate(0, START_SPREAD["host"])

    @property
    def _busy_now(self) -> float:
        return self._busy * self._faults.stretch("slow_kernels") * self._faults.stretch("slow_clocks")

    def seconds(self, steps: int) -> float:
        """Of a request that took ``steps`` forward passes."""
        host = self._host * self._faults.stretch("slow_host") * self._faults.stretch("other_host")
        host *= self._faults.stretch("lost_graph")
        return steps * (self._busy_now + host) * self._noise.lognormvariate(0, BLOCK_SPREAD)

    def reference_step(self) -> dict[str, Any]:
        """The fields of ``ReferenceStep``."""
        seconds = REFERENCE_SECONDS * self._faults.stretch("other_host") * self._noise.lognormvariate(0, BLOCK_SPREAD)
        return {"seconds": seconds, "version": "simulated-1"}

    def rate(self) -> float:
        """What the accelerator can copy, in bytes a second."""
        return RATE / self._faults.stretch("slow_clocks")

    def trace(self, steps: int) -> dict[str, Any]:
        """The fields of ``StepTrace``: all kernels of a step in one captured graph, unless that is lost or a kernel was added."""
        names = dict(_KERNELS)
        if self._faults.active("add_kernels"):
            names["rotary_again"] = 12
        kernels = sum(names.values())
        graph = not self._faults.active("lost_graph")
        return {
            "steps": steps,
            "busy_seconds": steps * self._busy_now,
            "kernels": steps * kernels,
            "copies": steps * _COPIES,
            "synchronisations": steps * _WAITS,
            "launches": steps * ((1 if graph else kernels) + _COPIES),
            "replays": steps * graph,
            "names": {name: steps * count for name, count in names.items()},
        }
