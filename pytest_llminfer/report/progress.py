"""Long work, shown while it runs: a bar on a terminal; anywhere else nothing, or one line."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable


class ProgressBar:
    """Called with (phase, done, total). Draws on ``stream``; ``uncaptured`` lets output through pytest's capture."""

    def __init__(self, label: str, uncaptured: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._label, self._uncaptured = label, uncaptured
        self._bar: Any = None
        self._phase = ""
        self._lock = threading.Lock()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Draw the bar of this phase; a finished one is taken away."""
        # The replicas of a cell report from threads of their own.
        with self._lock, self._uncaptured():
            if self._bar is None or phase != self._phase:
                self._open(phase, total)
            self._bar.total = total
            self._bar.n = done
            self._bar.refresh()
            if done >= total:
                self._bar.close()
                self._bar = None

    def _open(self, phase: str, total: int) -> None:
        from tqdm import tqdm

        if self._bar is not None:
            self._bar.close()
        self._phase = phase
        self._bar = tqdm(total=total, desc=f"{self._label} {phase}", leave=False, file=sys.stderr, dynamic_ncols=True)


class Notice:
    """Called as :class:`ProgressBar` is. Writes one line a phase to standard error, for long unattended work."""

    def __init__(self, label: str, uncaptured: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._label, self._uncaptured = label, uncaptured
        self._phases: set[str] = set()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Say what is under way, the first time."""
        if phase not in self._phases:
            self._phases.add(phase)
            with self._uncaptured():
                print(f"\n{self._label} {phase}: {done} of {total}", file=sys.stderr, flush=True)  # noqa: T201 - for a log


def attended() -> bool:
    """Whether a person is watching: standard error, outside of pytest's capture, is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
