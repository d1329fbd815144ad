"""What each rank of a parallel model holds of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.predict.formats import GROUP, FormatOptions
from pytest_llminfer.predict.weights import held_weights, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_llminfer.models.shape import ModelShape
    from pytest_llminfer.predict.rules import EngineRules


def expected_rank_weights(
    *,
    shape: ModelShape,
    dtype: str,
    quantization: str,
    engine: EngineRules,
    tp: int,
    pp: int,
    plan: Collection[str] = (),
    group_size: int | None = None,
) -> dict[int, int]:
    """Bytes of weights that one rank holds, by its pipeline rank; all tensor ranks of a stage hold as much.

    plan: the modules that the engine says it shards (``shards.sharded_roles``). Layers are dealt to pipeline stages evenly; the
    embedding is on the first stage, final norm and output matrix on the last. group_size: inputs that share a scale, -1 for all of
    a row, None for the usual.

    Raises:
        UnsupportedError: an engine, a quantization or a split whose shares are not known here: a visible skip.
    """
    held = held_weights(
        shape,
        dtype=dtype,
        quantization=quantization,
        engine=engine,
        tp=tp,
        pp=pp,
        plan=plan,
        options=FormatOptions(group_size=group_size or GROUP),
    )
    return {stage: stored_bytes(weights) for stage, weights in held.items()}
