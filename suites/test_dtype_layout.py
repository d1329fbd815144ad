"""Every parameter is stored as the cell says: role, dtype, shape, bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.checks.layout import check_layout, check_layout_unchanged, summarise_layout
from pytest_llminfer.models.stored import group_size

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.judging import Judge
    from pytest_llminfer.recording import Baseline


def test_every_parameter_is_stored_as_declared(engine: Engine, judge: Judge) -> None:
    """Embeddings, norms and the output matrix keep the model's dtype; the linears of every layer have the cell's format."""
    layout = engine.layout()
    judge(
        check_layout(
            parameters=layout.parameters,
            shape=engine.model.shape,
            dtype=engine.info.dtype,
            quantization=engine.spec.quantization,
            tied=layout.tied,
            engine=engine.spec.engine,
            group_size=group_size(engine.model.config.get("quantization_config")),
            asked=str(engine.settings()["resolved"].get("quantization") or "") if "settings" in engine.info.capabilities else "",
        )
    )


def test_layout_is_as_recorded(engine: Engine, baseline: Baseline, judge: Judge) -> None:
    """For every architecture, known here or not: nothing is stored otherwise than when the baseline was made."""
    parameters = engine.layout().parameters
    expected = baseline.expected("dtype_layout", observed=lambda _: summarise_layout(parameters), conditions={}, n=len(parameters))
    judge(check_layout_unchanged(parameters=parameters, expected=expected))
