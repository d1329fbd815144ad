"""What an engine is asked about its settings, for a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.engines.capabilities import engines_that_answer
from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.engines.engine import Engine

PARTS = {"resolved": "resolved settings", "defaults": "defaults"}
"""``resolved``: the configuration in force, on this hardware. ``defaults``: what the engine does by default."""


def observe(engine: Engine, previous: Mapping[str, Any] | None, *, part: str) -> Mapping[str, Any]:  # noqa: ARG001 - a record stands alone
    """One of ``PARTS``.

    Raises:
        UnsupportedError: the engine does not report it.
    """
    found: Mapping[str, Any] = engine.settings()[part]
    if not found:
        raise UnsupportedError(
            f"{'a server' if engine.spec.over_http else engine.spec.engine} does not report its {PARTS[part]}",
            f"engines that do, asked without a server: {', '.join(engines_that_answer('settings'))}",
        )
    return found
