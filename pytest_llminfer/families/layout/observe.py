"""What an engine is asked about its layout, for a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.families.layout.ranks import summarise_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.engines.engine import Engine


def observe(engine: Engine, previous: Mapping[str, Any] | None) -> Mapping[str, Any]:  # noqa: ARG001 - a record stands alone
    """What a record holds of the layouts of all ranks (:func:`summarise_ranks`)."""
    return summarise_ranks(engine.rank_layouts())
