"""What a session asks of the divergence family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class DivergenceSettings:
    """Limits that replace the family's own.

    Attributes:
        limits: Kind of cell, a key of ``check.LIMITS``, to (mean KL in nats, least share of positions with the same most likely
            token); empty for the family's own.
    """

    limits: Mapping[str, tuple[float, float]]
