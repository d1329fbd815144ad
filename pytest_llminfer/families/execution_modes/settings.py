"""What a session asks of the execution modes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecutionModesSettings:
    """kv_variants: whether each engine is started again with other pools, chunks and cache dtypes, and compared."""

    kv_variants: bool = False
