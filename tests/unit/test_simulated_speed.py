"""Each gate of throughput with a fault that it must catch, put into the simulated engine, which is asked as a worker would be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llminfer.engines.timing import TimedQuestions
from pytest_llminfer.errors import EngineError, UnsupportedError
from pytest_llminfer.families.throughput.observe import Throughput, Workload
from pytest_llminfer.families.throughput.recorded import Judged
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome, Verdict
from tests.support.engines.simulated_backends import load

TINY = Workload("decode", 2, 4, 8)
MODEL = Model("reference")


class InProcess(TimedQuestions):
    """What ``measure`` asks of an engine, without a process of its own."""

    info: Any = SimpleNamespace(device="cpu")

    def __init__(self, **engine_args: Any) -> None:
        self.spec, self.model, self.engine_args = EngineSpec("simulated"), MODEL, engine_args
        self._replicas = [self]  # type: ignore[list-item]
        self.loads = 0
        self.restart()

    def restart(self) -> None:
        self.loads += 1
        self.backend = load(**self.engine_args)

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        return self.backend.generate(**params) if method == "time_generation" else getattr(self.backend, method)(**params)

    def _ask(self, method: str, **params: Any) -> Any:
        return self.ask(method, params)

    def supports(self, capability: str) -> bool:
        return capability in self.backend.capabilities


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    engine: Any = InProcess(accelerator=True)
    return Throughput(engine, None).observe(engine, None, workload=TINY)


def judged(record: dict[str, Any], **faults: Any) -> tuple[Verdict, int]:
    """The verdict, and how often the engine was loaded for it."""
    engine: Any = InProcess(accelerator=True, **faults)
    throughput = Throughput(engine, None)
    speed = Judged(throughput(TINY), record, on_cpu=throughput.on_cpu)
    return speed.verdict(throughput.confirm(speed)), engine.loads


def test_a_clean_run_passes_in_one_start(record: dict[str, Any]) -> None:
    for _ in range(5):
        verdict, loads = judged(record)
        assert (verdict.outcome, loads) == (Outcome.PASS, 1), verdict


@pytest.mark.parametrize("factor", [1.02, 1.05, 1.10])
def test_slower_kernels_fail(record: dict[str, Any], factor: float) -> None:
    verdict, loads = judged(record, fault="slow_kernels", fault_factor=factor)
    assert (verdict.outcome, loads) == (Outcome.FAIL, 3)
    assert verdict.details[0].startswith("accelerator's busy seconds +")


def test_a_slower_host_fails(record: dict[str, Any]) -> None:
    verdict, loads = judged(record, fault="slow_host", fault_factor=1.25)
    assert (verdict.outcome, loads) == (Outcome.FAIL, 3)
    assert verdict.details[0].startswith("host's part over a frozen step +")


def test_a_lost_graph_fails_and_its_launches_are_told(record: dict[str, Any]) -> None:
    verdict, _ = judged(record, fault="lost_graph", fault_factor=1.5)
    assert verdict.outcome is Outcome.FAIL
    assert "launches a step: 182.0, recorded 3.0" in verdict.details


def test_more_kernels_that_cost_nothing_are_named(record: dict[str, Any]) -> None:
    verdict, loads = judged(record, fault="add_kernels")
    assert (verdict.outcome, loads) == (Outcome.PASS, 1)
    assert "kernels that are new or run more often: rotary_again (+96)" in verdict.details


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_another_host_passes_in_one_start_and_is_told(record: dict[str, Any], factor: float) -> None:
    verdict, loads = judged(record, fault="other_host", fault_factor=factor)
    assert (verdict.outcome, loads) == (Outcome.PASS, 1)
    assert "another host than any recorded one" in verdict.details[0]


def test_throttled_clocks_are_invalid_and_start_nothing_anew(record: dict[str, Any]) -> None:
    verdict, loads = judged(record, fault="slow_clocks", fault_factor=1.5)
    assert (verdict.outcome, loads) == (Outcome.INVALID, 1)


def test_a_processor_has_no_accelerator_to_trace() -> None:
    engine: Any = InProcess()
    assert not engine.supports("trace")
    with pytest.raises(UnsupportedError, match="accelerator=true"):
        engine.trace([[[5, 6]]], new_tokens=2)
    step = engine.reference_step()
    assert step.version == "numpy-1"
    assert 0 < step.seconds < 60


def test_an_answer_of_another_length_is_no_measurement() -> None:
    engine: Any = InProcess(accelerator=True, fault="drop_answer")
    with pytest.raises(EngineError, match="did not generate exactly 4 tokens a prompt"):
        engine.time_generation([[5, 6], [7, 8]], new_tokens=4)
