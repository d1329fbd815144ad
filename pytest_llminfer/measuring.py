"""Measure an engine's speed with pytest-benchmark: fixed lengths, fresh prompts, and the device's own rates before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checks.throughput import CPU_DRIFT, CUDA_DRIFT, Session, summarise_session
from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.checks.throughput import Yardstick
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.observations import Calibration

ROUNDS, WARM_UP_ROUNDS = 5, 1
KEPT_SESSIONS = 40
HOST_BOUND_BYTES = 2**30
"""Below this many bytes of weights a GPU waits for the host at every step, so the host is the yardstick."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What one round asks for: ``batch`` prompts of ``prompt_tokens``, each continued by exactly ``new_tokens``.

    phase: ``prefill`` counts prompt tokens per second, ``decode`` generated ones.
    """

    phase: str
    batch: int
    prompt_tokens: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens that a round's rate counts."""
        return self.batch * (self.prompt_tokens if self.phase == "prefill" else self.new_tokens)


WORKLOADS = {"prefill": Workload("prefill", 8, 256, 1), "decode": Workload("decode", 8, 16, 64)}


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of each round, and the device's rates before and after them."""

    workload: Workload
    rounds: tuple[float, ...]
    before: Calibration
    after: Calibration
    yardstick: Yardstick
    drift_bound: float

    def record(self, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        """This session appended to those recorded so far, of which the last 39 are kept."""
        session = summarise_session(rounds=self.rounds, before=self.before, after=self.after)
        earlier = list(previous["sessions"]) if previous else []
        return {"sessions": [*earlier[-KEPT_SESSIONS + 1 :], session.to_dict()]}


def sessions(expected: Mapping[str, Any]) -> list[Session]:
    """The recorded sessions of a baseline."""
    return [Session.from_dict(entry) for entry in expected["sessions"]]


class Throughput:
    """Called with a workload; ``benchmark`` is the fixture of pytest-benchmark, whose own JSON and comparisons keep working."""

    def __init__(self, engine: Engine, benchmark: Any) -> None:
        self._engine, self._benchmark = engine, benchmark

    def __call__(self, workload: Workload) -> Speed:
        """Warm up, then measure five rounds of distinct prompts, so that no prefix cache can help.

        Raises:
            UnsupportedError: pytest-benchmark is switched off, as it is under pytest-xdist.
        """
        if self._benchmark.disabled:
            raise UnsupportedError(
                "pytest-benchmark is switched off (as it is under pytest-xdist): run the throughput tests with -n0"
            )
        engine, before = self._engine, self._engine.calibrate()
        batches = iter(_batches(engine, workload))

        def fresh() -> tuple[tuple[list[list[int]]], dict[str, Any]]:
            return (next(batches),), {}

        def one_round(prompts: list[list[int]]) -> None:
            answers = engine.generate(prompts, max_tokens=workload.new_tokens, ignore_eos=True)
            assert all(len(answer.token_ids) == workload.new_tokens for answer in answers), "the output length was not kept"  # noqa: S101

        self._benchmark.extra_info.update(asdict(workload), tokens_per_round=workload.tokens, cell=str(engine.spec))
        self._benchmark.pedantic(one_round, setup=fresh, rounds=ROUNDS, warmup_rounds=WARM_UP_ROUNDS)
        seconds = self._benchmark.stats.stats.data
        return Speed(
            workload=workload,
            rounds=tuple(workload.tokens / duration for duration in seconds),
            before=before,
            after=engine.calibrate(),
            yardstick=_yardstick(engine, workload),
            drift_bound=CPU_DRIFT if engine.info.device == "cpu" else CUDA_DRIFT,
        )


def _batches(engine: Engine, workload: Workload) -> list[list[list[int]]]:
    prompts = engine.model.sample_prompts((ROUNDS + WARM_UP_ROUNDS) * workload.batch, workload.prompt_tokens)
    return [prompts[start : start + workload.batch] for start in range(0, len(prompts), workload.batch)]


def _yardstick(engine: Engine, workload: Workload) -> Yardstick:
    """What bounds this workload: arithmetic in prefill, reading the weights in decode, the host where the weights are small."""
    host_bytes = HOST_BOUND_BYTES if engine.info.device != "cpu" or workload.phase == "decode" else 0
    if engine.memory().weights_bytes < host_bytes:
        return "python_loops_per_second"
    return "matmul_flops_per_second" if workload.phase == "prefill" else "copy_bytes_per_second"
