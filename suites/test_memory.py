"""Memory: what the configuration implies, what was recorded, and nothing left behind."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.families.memory.check import (
    check_kv_bytes_per_token,
    check_no_growth,
    check_peak,
    check_weights,
    predict_weights,
)
from pytest_llminfer.families.memory.observe import observe_peak, peak_bytes, read_peak, recorded_peak
from pytest_llminfer.families.memory.profile import check_profile
from pytest_llminfer.models.stored import declared_groups
from pytest_llminfer.predict.ranks import expected_rank_weights
from pytest_llminfer.verdict import Outcome

if TYPE_CHECKING:
    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.memory.observe import MemoryProfile
    from pytest_llminfer.observations.memory import MemoryReport
    from pytest_llminfer.plugin.judging import Judge
    from pytest_llminfer.verdict import Verdict

pytestmark = pytest.mark.llminfer_needs("memory")
REQUESTS = 20


def test_weights_take_the_bytes_that_the_configuration_implies(engine: Engine, judge: Judge) -> None:
    """Two-sided: too small is as wrong as too large. Of a model that is split, the fullest rank is meant."""
    spec = engine.spec
    of: Any = {
        "shape": engine.model.shape,
        "dtype": engine.info.dtype,
        "quantization": spec.quantization,
        "group_size": declared_groups(engine.model.config),
    }
    if spec.tp * spec.pp > 1:
        plan = engine.settings()["resolved"].get("tp_plan") or ()
        predicted = max(expected_rank_weights(**of, engine=profile(spec.engine), tp=spec.tp, pp=spec.pp, plan=plan).values())
    else:
        predicted = predict_weights(**of, engine=profile(spec.engine), device=engine.info.device)
    judge(check_weights(report=engine.memory(), predicted=predicted))


def test_every_line_of_memory_is_what_the_configuration_predicts(memory_profile: MemoryProfile, judge: Judge) -> None:
    """Weights, tables of positions, keys and values: each within its gate. The profile is printed under the tables."""
    judge(check_profile(lines=memory_profile.take()))


@pytest.mark.llminfer_needs("kv_cache")
def test_cache_takes_the_bytes_per_token_that_the_configuration_implies(engine: Engine, judge: Judge) -> None:
    """2 x layers x kv_heads x head_dim x bytes, for the prompt and for every token after it."""
    report = engine.kv_cache(engine.model.prompts(1)[0], extend=8)
    judge(check_kv_bytes_per_token(report=report, expected=engine.model.shape.kv_bytes_per_token(engine.info.kv_dtype)))


def test_nothing_is_left_behind_after_identical_requests(engine: Engine, judge: Judge) -> None:
    """Twenty times the same request: memory in use does not grow by a byte. Of two, engines may make one batch or two."""
    (prompt,) = engine.model.prompts(1)
    readings = []
    for _ in range(REQUESTS):
        engine.generate([prompt], max_tokens=8)
        readings.append(engine.memory().live_bytes)
    judge(check_no_growth(live_bytes=readings))


@pytest.mark.parametrize("peak", ["load", "run"])
def test_peak_is_within_its_budget(engine: Engine, baseline: Baseline, judge: Judge, peak: str) -> None:
    """The highest use while loading, and while generating, against the record; on a GPU that of this very one.

    A process also holds what ran before: pages of code, workspaces of the libraries. A peak above its budget is therefore read
    again on a fresh start, and that one is judged.
    """
    report = engine.once(read_peak, peak)
    budget: int = baseline.expected(
        f"memory_{peak}_peak",
        observe=partial(observe_peak, peak=peak),
        conditions={"measured_by": report.measured_by},
        n=1,
        per_hardware=report.device != "cpu",
        per_parallelism=True,
        arguments="all",
        read=recorded_peak,
    )
    verdict = _judged(report, peak, budget)
    if verdict.outcome is Outcome.FAIL:
        engine.restart()
        verdict = _judged(read_peak(engine, peak), peak, budget, " on a fresh start")
    judge(verdict)


def _judged(report: MemoryReport, peak: str, budget: int, when: str = "") -> Verdict:
    return check_peak(
        measured=peak_bytes(report, peak),
        budget=budget,
        budget_source="the record",
        resolution=report.resolution_bytes,
        what=f"{peak} peak{when}",
    )
