"""Two sides of a comparison, each a process that loads once and then answers on request, timed in pairs that lie side by side.

A side connects to the socket that ``HARNESS_TAX_SOCKET`` names, says what it has loaded, and answers requests, with ``seconds``
and ``answers``, until None comes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

THREADS = max(1, len(os.sched_getaffinity(0)) - 1)
"""One core is left free, as the plugin itself does."""
START_SECONDS = 300.0
LAST_CHARACTERS = 3000
ENGINE_PROCESSES = "VLLM::"
"""How vLLM calls those of its processes that execution mode and compute."""


class Side:
    """A process that answers all questions each time it is asked. ``ready`` is what it said after loading."""

    def __init__(self, command: Sequence[str], folder: Path, threads: int, **variables: str) -> None:
        self._log = folder / "log.txt"
        with Listener(str(folder / "socket"), family="AF_UNIX") as listener, self._log.open("wb") as log:
            own = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HARNESS_TAX_SOCKET": str(listener.address)}
            settings = {**os.environ, **own, **variables}
            self._process = subprocess.Popen(command, cwd=folder, env=settings, stdout=log, stderr=log)
            self._connection = self._accept(listener)
        self.ready = self._receive()

    def _accept(self, listener: Listener) -> Connection:
        # accept() has no timeout of its own, and a side that failed to start will never connect.
        listener._listener._socket.settimeout(1.0)  # type: ignore[attr-defined]  # noqa: SLF001
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                connection = listener.accept()
            except TimeoutError:
                continue
            return connection
        self._process.kill()
        sys.exit(f"a side did not start:\n{self._last_lines()}")

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds, the answers by question id, and the processor's seconds of all processes, and of those around the engine."""
        before = self._cpu_seconds()
        self._connection.send(request)
        reply, after = self._receive(), self._cpu_seconds()
        used = {process: after[process] - before.get(process, 0.0) for process in after}
        around = sum(seconds for (_, name), seconds in used.items() if not name.startswith(ENGINE_PROCESSES))
        return {**reply, "cpu_seconds": sum(used.values()), "around_seconds": around}

    def close(self) -> None:
        """End the process in its own time; one that failed ends the benchmark."""
        self._connection.send(None)
        if self._process.wait(timeout=60):
            sys.exit(f"a side failed:\n{self._last_lines()}")

    def _cpu_seconds(self) -> dict[tuple[int, str], float]:
        """Of every process of the side, by its id and what it calls itself."""
        side, found = psutil.Process(self._process.pid), {}
        for process in (side, *side.children(recursive=True)):
            times = process.cpu_times()
            found[process.pid, "".join(process.cmdline()[:1])] = times.user + times.system
        return found

    def _receive(self) -> dict[str, Any]:
        try:
            message: dict[str, Any] = self._connection.recv()
        except EOFError:
            self._process.wait(timeout=60)
            sys.exit(f"a side ended early:\n{self._last_lines()}")
        return message

    def _last_lines(self) -> str:
        return self._log.read_text(errors="replace")[-LAST_CHARACTERS:]


@dataclass(frozen=True, slots=True)
class Pairs:
    """What each pair took: the measured side, then the bare one, in seconds of the clock and of the processor.

    around_seconds: of the processor, without those processes of an engine that execution mode and compute.
    """

    seconds: tuple[tuple[float, float], ...]
    cpu_seconds: tuple[tuple[float, float], ...]
    around_seconds: tuple[tuple[float, float], ...]

    @property
    def ratios(self) -> list[float]:
        """Of each pair, in time."""
        return [first / second for first, second in self.seconds]

    @property
    def bare_seconds(self) -> float:
        """The median of the bare side."""
        return statistics.median(second for _, second in self.seconds)

    @property
    def cpu_ratio(self) -> float:
        """The median of the pairs' ratios in the processor's time, which other programs disturb less."""
        return statistics.median(first / second for first, second in self.cpu_seconds)

    @property
    def added_seconds(self) -> list[float]:
        """Of the processor, around the engine, that the measured side used more than the bare one."""
        return [first - second for first, second in self.around_seconds]

    @property
    def spread(self) -> str:
        """How many, how far apart, and by the fastest run of each side."""
        fastest = min(first for first, _ in self.seconds) / min(second for _, second in self.seconds)
        return (
            f"median of {len(self.seconds)} pairs; {min(self.ratios):.3f} to {max(self.ratios):.3f}; "
            f"fastest over fastest {fastest:.3f}; processor's time {self.cpu_ratio:.3f}"
        )


def compare(measured: Side, bare: Side, request: dict[str, Any], pairs: int) -> Pairs:
    """Ask both sides ``pairs`` times, in an order that alternates; a first pair warms up and is not counted.

    Ends the benchmark if an answer differs.
    """
    kinds = ("seconds", "cpu_seconds", "around_seconds")
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for pair in range(pairs + 1):
        if pair % 2:
            second, first = bare.run(request), measured.run(request)
        else:
            first, second = measured.run(request), bare.run(request)
        _check_same(first["answers"], second["answers"])
        took, used, around = ((first[kind], second[kind]) for kind in kinds)
        note = f"ratio {took[0] / took[1]:.4f}" if pair else "warm-up, not counted"
        cpu = f"processor {used[0]:.2f} s over {used[1]:.2f} s, around the engine {around[0]:.2f} s over {around[1]:.2f} s"
        print(
            f"pair {pair}: {took[0]:.3f} s over {took[1]:.3f} s, {note}; {cpu}; load average {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
            flush=True,
        )
        for kind, pair_taken in zip(kinds, (took, used, around), strict=True):
            taken[kind] += [pair_taken] * bool(pair)
    return Pairs(**{kind: tuple(each) for kind, each in taken.items()})


def _check_same(measured: dict[str, Any], bare: dict[str, Any]) -> None:
    if not bare or list(measured) != list(bare):
        sys.exit(f"the sides answered different questions: {len(measured)} and {len(bare)}")
    if different := [name for name in bare if measured[name] != bare[name]]:
        name = different[0]
        sys.exit(
            f"{len(different)} of {len(bare)} answers differ, so the times cannot be compared; first {name}:\n"
            f"{measured[name]}\n{bare[name]}"
        )
