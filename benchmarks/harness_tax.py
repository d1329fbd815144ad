"""What asking questions through the plugin costs over a bare loop: wall time of one over the other.

Both sides answer the same bundled GSM8K-like questions with the bundled reference model, transformers in bfloat16 on the CPU,
in this interpreter, with the same number of threads and the same budget of tokens a batch. Measured on each side: from questions
to graded answers, that is, wording and encoding the prompts, batching, generation, decoding, grading; through the plugin also
the way to the worker process and back. Loading is not measured: each side is one process that loads once and then
answers on request, so that the two runs of a pair lie side by side in time. The order alternates from pair to pair. The first
pair warms up and is not counted. Every run must give the same token ids and grades on both sides, else there is no number.

``--control`` measures a second bare loop in place of the plugin: the ratio then tells the noise of the method.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from result import Result, finish

LIMIT = 1.05
QUESTIONS, PAIRS = 300, 5
THREADS = max(1, len(os.sched_getaffinity(0)) - 1)
"""One core is left free, as the plugin itself does."""

HERE = Path(__file__).resolve().parent
BARE = (sys.executable, str(HERE / "bare_loop.py"))
START_SECONDS = 300.0
LAST_CHARACTERS = 3000
OPTIONS = ("--engine=transformers", "--model=reference", "--dtype=bf16", "--quantization=none", "--dataset=synthetic")


class Side:
    """A process that answers all questions each time it is asked. ``ready`` is what it said after loading."""

    def __init__(self, command: tuple[str, ...], folder: Path, threads: int) -> None:
        self._log = folder / "log.txt"
        with Listener(str(folder / "socket"), family="AF_UNIX") as listener, self._log.open("wb") as log:
            variables = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HARNESS_TAX_SOCKET": str(listener.address)}
            self._process = subprocess.Popen(command, cwd=folder, env={**os.environ, **variables}, stdout=log, stderr=log)
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
            return connection  # type: ignore[return-value]
        self._process.kill()
        sys.exit(f"a side did not start:\n{self._last_lines()}")

    def run(self, request: dict[str, int]) -> dict[str, Any]:
        """Seconds, and the answers by question id."""
        self._connection.send(request)
        return self._receive()

    def close(self) -> None:
        """End the process in its own time; one that failed ends the benchmark."""
        self._connection.send(None)
        if self._process.wait(timeout=60):
            sys.exit(f"a side failed:\n{self._last_lines()}")

    def _receive(self) -> dict[str, Any]:
        try:
            message: dict[str, Any] = self._connection.recv()
        except EOFError:
            self._process.wait(timeout=60)
            sys.exit(f"a side ended early:\n{self._last_lines()}")
        return message

    def _last_lines(self) -> str:
        return self._log.read_text(errors="replace")[-LAST_CHARACTERS:]


def check_same(plugin: dict[str, Any], bare: dict[str, Any]) -> None:
    """End with an error unless both sides answered the same questions with the same tokens and grades."""
    if not bare or list(plugin) != list(bare):
        sys.exit(f"the sides answered different questions: {len(plugin)} and {len(bare)}")
    if different := [name for name in bare if plugin[name] != bare[name]]:
        name = different[0]
        sys.exit(
            f"{len(different)} of {len(bare)} answers differ, so the times cannot be compared; first {name}:\n"
            f"{plugin[name]}\n{bare[name]}"
        )


def measure(questions: int, pairs: int, threads: int, *, control: bool = False) -> list[Result]:
    """The median of the pairs' ratios, and the bare loop's own seconds, which only give the scale."""
    pytest_command = (sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *OPTIONS, "through_plugin.py")
    with tempfile.TemporaryDirectory() as name:
        folders = Path(name) / "plugin", Path(name) / "bare"
        for folder in folders:
            folder.mkdir()
        (folders[0] / "pytest.ini").write_text("[pytest]\n")
        shutil.copy(HERE / "through_plugin.py", folders[0])
        plugin, bare = Side(pytest_command, folders[0], threads), Side(BARE, folders[1], threads)
        request = {**plugin.ready, "questions": questions}
        if control:
            plugin.close()
            plugin = Side(BARE, folders[0], threads)
        seconds: list[tuple[float, float]] = []
        for pair in range(pairs + 1):
            if pair % 2:
                of_bare, of_plugin = bare.run(request), plugin.run(request)
            else:
                of_plugin, of_bare = plugin.run(request), bare.run(request)
            check_same(of_plugin["answers"], of_bare["answers"])
            seconds.append((of_plugin["seconds"], of_bare["seconds"]))
            note = f"ratio {seconds[-1][0] / seconds[-1][1]:.4f}" if pair else "warm-up, not counted"
            print(f"pair {pair}: {seconds[-1][0]:.3f} s over {seconds[-1][1]:.3f} s, {note}", file=sys.stderr, flush=True)
        plugin.close()
        bare.close()
    ratios = [first / second for first, second in seconds[1:]]
    what = "a second bare loop over the first" if control else "through the plugin over a bare loop"
    fastest = min(first for first, _ in seconds[1:]) / min(second for _, second in seconds[1:])
    spread = f"median of {pairs} pairs; {min(ratios):.3f} to {max(ratios):.3f}; fastest over fastest {fastest:.3f}"
    what += f", {threads} threads, identical answers"
    return [
        Result(f"{questions} questions {what}", statistics.median(ratios), "", LIMIT, spread),
        Result("seconds of the bare loop", statistics.median(second for _, second in seconds[1:]), " s", None, f"n={pairs}"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--threads", type=int, default=THREADS, help="OMP_NUM_THREADS")
    parser.add_argument("--control", action="store_true")
    given = parser.parse_args()
    finish(measure(given.questions, given.pairs, given.threads, control=given.control))
