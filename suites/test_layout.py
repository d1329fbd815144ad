"""Every parameter is stored as the cell says: role, dtype, shape, bytes; of a split model by every rank, its part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.families.layout.observe import observe
from pytest_llminfer.families.layout.ranks import check_rank_layouts, check_ranks_unchanged, readable
from pytest_llminfer.models.stored import declared_groups

if TYPE_CHECKING:
    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.plugin.judging import Judge

pytestmark = pytest.mark.llminfer_needs("layout")


def test_every_parameter_is_stored_as_declared(engine: Engine, judge: Judge) -> None:
    """Embeddings, norms and the output matrix keep the model's dtype; the linears of every layer have the cell's format."""
    spec = engine.spec
    resolved = engine.settings()["resolved"] if "settings" in engine.info.capabilities else {}
    judge(
        check_rank_layouts(
            ranks=engine.rank_layouts(),
            shape=engine.model.shape,
            dtype=engine.info.dtype,
            quantization=spec.quantization,
            engine=profile(spec.engine),
            tp=spec.tp,
            pp=spec.pp,
            plan=resolved.get("tp_plan") or (),
            group_size=declared_groups(engine.model.config),
            asked=str(resolved.get("quantization") or ""),
            random_weights=spec.weights == "dummy",
        )
    )


def test_layout_is_as_recorded(engine: Engine, baseline: Baseline, judge: Judge) -> None:
    """For every architecture, known here or not: nothing is stored otherwise than when the baseline was made."""
    ranks, spec = engine.rank_layouts(), engine.spec
    expected = baseline.expected(
        "dtype_layout",
        observe=observe,
        conditions={},
        n=sum(len(rank.parameters) for rank in ranks),
        per_hardware=profile(spec.engine).layout_depends_on_device(spec),
        # Replicas are stored alike; ranks each have their part.
        per_parallelism=len(ranks) > 1,
        read=readable,
    )
    judge(check_ranks_unchanged(ranks=ranks, expected=expected))
