"""The memory of this session's cells, line by line: printed under the tables, and stored where baselines are being recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.families.memory.check import predict_weights
from pytest_llminfer.families.memory.profile import ProfileLine, pinned_capacity, profile_lines
from pytest_llminfer.families.memory.section import MEMORY
from pytest_llminfer.models.stored import declared_groups
from pytest_llminfer.predict.allocator import cuda_allocation
from pytest_llminfer.predict.buffers import rope_bytes
from pytest_llminfer.predict.kv import bytes_per_token, kv_groups
from pytest_llminfer.predict.ranks import expected_rank_weights
from pytest_llminfer.predict.weights import allocated_bytes, held_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.baselines.notes import Note
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.observations.memory import MemoryReport

FAMILY = "memory_profile"


def read_peak(engine: Engine, peak: str) -> MemoryReport:
    """The memory after loading (``load``), or after a batch of generation whose peak alone counts (``run``)."""
    if peak == "run":
        if engine.info.device == "cpu":
            # Code that is paged in at its first use is not memory that a request needs.
            engine.generate(engine.model.prompts(8), max_tokens=32)
        engine.memory(reset_peak=True)
        engine.generate(engine.model.prompts(8), max_tokens=32)
    return engine.memory()


def peak_bytes(report: MemoryReport, peak: str) -> int:
    """The highest use in a report, in bytes: while loading (``load``), or since the last reset (``run``)."""
    return report.load_peak_bytes if peak == "load" else report.run_peak_bytes


def observe_peak(engine: Engine, previous: Mapping[str, Any] | None, *, peak: str) -> dict[str, Any]:  # noqa: ARG001 - a record stands alone
    """What a record holds of a peak: ``{"peak_bytes"}``."""
    return {"peak_bytes": peak_bytes(engine.once(read_peak, peak), peak)}


def recorded_peak(expected: Mapping[str, Any]) -> int:
    """The bytes of a recorded peak."""
    return int(expected["peak_bytes"])


class MemoryProfile:
    """The profile of one cell."""

    def __init__(self, engine: Engine, baseline: Baseline, note: Note) -> None:
        self._engine, self._baseline, self._note = engine, baseline, note

    def take(self) -> tuple[ProfileLine, ...]:
        """Predict and measure every line now; note them for the report, and for a baseline that is being recorded.

        Raises:
            UnsupportedError: an architecture, or a split of it, that nothing predicts.
        """
        engine, spec = self._engine, self._engine.spec
        rules = profile(spec.engine)
        shape, config = engine.model.shape, engine.model.config
        resolved = engine.settings()["resolved"] if engine.supports("settings") else {}
        of: dict[str, Any] = {
            "shape": shape,
            "dtype": engine.info.dtype,
            "quantization": spec.quantization,
            "engine": rules,
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
        buffers = rope_bytes(config, shape, engine=rules, dtype=engine.info.dtype, on_gpu=engine.info.device != "cpu")
        if report.engine_weights_bytes is not None and spec.quantization == "none" and spec.tp * spec.pp == 1:
            # What is quantized while it loads is cut out of segments that were taken for unquantized weights, and
            # ranks also hold what
            # they talk through.
            held = held_weights(shape, dtype=engine.info.dtype, engine=rules)
            known["allocated"] = max(map(allocated_bytes, held.values())) + cuda_allocation(buffers)
        lines = profile_lines(report=report, weights=max(weights.values()), buffers=buffers, **known)
        rows = [line.to_dict() for line in lines]
        self._note(MEMORY, {"cell": str(spec), "lines": rows})
        self._baseline.keep(FAMILY, observed={"lines": rows}, n=len(rows))
        return lines
