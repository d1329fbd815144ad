"""The memory of this session's cells, line by line: printed under the tables, and stored where baselines are being recorded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_llminfer.families.memory.check import predict_weights
from pytest_llminfer.families.memory.profile import ProfileLine, pinned_capacity, profile_lines
from pytest_llminfer.families.memory.section import MEMORY
from pytest_llminfer.families.parallelism.check import expected_rank_weights
from pytest_llminfer.models.stored import declared_groups
from pytest_llminfer.predict.allocator import cuda_allocation
from pytest_llminfer.predict.buffers import rope_bytes
from pytest_llminfer.predict.kv import bytes_per_token, kv_groups
from pytest_llminfer.predict.weights import allocated_bytes, held_weights

if TYPE_CHECKING:
    import pytest

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.plugin.recording import Baseline

FAMILY = "memory_profile"


class MemoryProfile:
    """The profile of one cell."""

    def __init__(self, item: pytest.Item, engine: Engine, baseline: Baseline) -> None:
        self._item, self._engine, self._baseline = item, engine, baseline

    def take(self) -> tuple[ProfileLine, ...]:
        """Predict and measure every line now; note them for the report, and for a baseline that is being recorded.

        Raises:
            UnsupportedError: an architecture, or a split of it, that nothing predicts.
        """
        engine, spec = self._engine, self._engine.spec
        shape, config = engine.model.shape, engine.model.config
        resolved = engine.settings()["resolved"] if engine.supports("settings") else {}
        of: dict[str, Any] = {
            "shape": shape,
            "dtype": engine.info.dtype,
            "quantization": spec.quantization,
            "engine": spec.engine,
            "group_size": declared_groups(config),
        }
        if spec.tp * spec.pp == 1:
            weights = {0: predict_weights(**of, device=engine.info.device)}
        else:
            weights = expected_rank_weights(**of, tp=spec.tp, pp=spec.pp, plan=resolved.get("tp_plan") or ())
        known: dict[str, Any] = {}
        if engine.supports("kv_pool"):
            pool = engine.kv_pool()
            rank = bytes_per_token(kv_groups(config, shape), engine.info.kv_dtype, tp=spec.tp)
            known = {
                "pool": pool,
                "bytes_per_token": rank * spec.tp,
                "rank_bytes_per_token": rank // spec.pp,
                "capacity": pinned_capacity(resolved=resolved, pool=pool, rank_bytes_per_token=rank // spec.pp),
            }
        report = engine.memory()
        buffers = rope_bytes(config, shape, engine=spec.engine, dtype=engine.info.dtype, on_gpu=engine.info.device != "cpu")
        if report.engine_weights_bytes is not None and spec.quantization == "none" and spec.tp * spec.pp == 1:
            # What is quantized while it loads is cut out of segments that were taken for unquantized weights, and
            # ranks also hold what
            # they talk through.
            held = held_weights(shape, dtype=engine.info.dtype, engine=spec.engine)
            known["allocated"] = max(map(allocated_bytes, held.values())) + cuda_allocation(buffers)
        lines = profile_lines(report=report, weights=max(weights.values()), buffers=buffers, **known)
        rows = [line.to_dict() for line in lines]
        self._item.user_properties.append((MEMORY, json.dumps({"cell": str(spec), "lines": rows})))
        self._baseline.keep(FAMILY, observed={"lines": rows}, n=len(rows))
        return lines
