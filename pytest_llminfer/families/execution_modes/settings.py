"""What a session asks of the execution modes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecutionModesSettings:
    """Which further execution modes are tested.

    Attributes:
        kv_variants: Whether each engine is started again with other pools, chunks and cache dtypes, and compared.
    """

    kv_variants: bool = False
