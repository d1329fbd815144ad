"""Bytes that the engine holds, counted by itself: exact, unlike a process's resident set."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Profile:
    """What is held now, and the most that was held since the last reset. Temporary arrays of a layer are not counted."""

    def __init__(self) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0

    def take(self, nbytes: int) -> None:
        """From now on ``nbytes`` more are held."""
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    @contextlib.contextmanager
    def hold(self, nbytes: int) -> Iterator[None]:
        """Hold ``nbytes`` for as long as the block runs."""
        self.take(nbytes)
        try:
            yield
        finally:
            self.live_bytes -= nbytes

    def reset_peak(self) -> None:
        """Reset the peak to what is held now."""
        self.peak_bytes = self.live_bytes
