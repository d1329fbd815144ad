"""Measure an engine's speed with pytest-benchmark: fixed lengths, fresh prompts, and the device's own rates before and after."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_llminfer.engines.launchers.local import default_threads
from pytest_llminfer.errors import EngineError, UnsupportedError
from pytest_llminfer.families.throughput.check import (
    CPU_DRIFT,
    CPU_SHORTFALL,
    CUDA_DRIFT,
    CUDA_SHORTFALL,
    Session,
    drift,
    is_suspicious,
    shortfall,
    summarise_session,
)
from pytest_llminfer.observations.engine import Calibration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.throughput.check import Yardstick

ROUNDS, WARM_UP_ROUNDS, FRESH_STARTS = 5, 1, 4
ATTEMPTS = 4
"""Measurements of one start of the engine at most, until the device's own rate holds still for one."""
KEPT_SESSIONS = 40
HOST_BOUND_BYTES = 2**30
"""Below this many bytes of weights a GPU waits for the host at every step, so the host is the yardstick."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What one round asks for: ``batch`` prompts of ``prompt_tokens``, each continued by exactly ``new_tokens``.

    Attributes:
        phase: ``prefill`` counts prompt tokens per second, ``decode`` generated ones.
        batch: Prompts of a round.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens generated for each prompt.
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
    """What was measured of one workload.

    Attributes:
        workload: What each round asked for.
        rounds: Tokens per second of each round.
        before: The device's own rates before the rounds.
        after: The device's own rates after them.
        yardstick: Name of the rate that bounds the workload, a field of ``Calibration``.
        drift_bound: How far that rate may move during the measurement, as a share.
        shortfall_bound: How far it may lie below the slowest recorded one, as a share.
    """

    workload: Workload
    rounds: tuple[float, ...]
    before: Calibration
    after: Calibration
    yardstick: Yardstick
    drift_bound: float
    shortfall_bound: float

    def is_suspicious(self, recorded: Sequence[Session]) -> bool:
        """Whether this is slower than a clean session would be, and worth fresh starts."""
        session = summarise_session(rounds=self.rounds, before=self.before, after=self.after)
        return is_suspicious(session=session, sessions=recorded, yardstick=self.yardstick)

    def is_fair(self, recorded: Sequence[Session] = ()) -> bool:
        """Whether the device's own rate stayed within its bound meanwhile, and is not below what it was in every recorded session.

        A session that is not would spoil the record.
        """
        session = summarise_session(rounds=self.rounds, before=self.before, after=self.after)
        moved = drift(before=self.before, after=self.after, yardstick=self.yardstick)
        return moved <= self.drift_bound and shortfall(session, recorded, self.yardstick) <= self.shortfall_bound

    def record(self, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        """This session, a steady one, appended to those recorded so far, of which the last 39 are kept."""
        session = summarise_session(rounds=self.rounds, before=self.before, after=self.after)
        earlier = list(previous["sessions"]) if previous else []
        return {"sessions": [*earlier[-KEPT_SESSIONS + 1 :], session.to_dict()]}


def sessions(expected: Mapping[str, Any]) -> list[Session]:
    """The recorded sessions of a baseline."""
    return [Session.from_dict(entry) for entry in expected["sessions"]]


class Throughput:
    """Called with a workload, which is measured once.

    ``benchmark``: the fixture of pytest-benchmark, whose own JSON and comparisons keep working; None measures without it.
    """

    def __init__(self, engine: Engine, benchmark: Any) -> None:
        self._engine, self._benchmark = engine, benchmark
        self._unused: Iterator[list[list[int]]] = iter(())
        self._measured: dict[Workload, Speed] = {}

    @property
    def conditions(self) -> dict[str, Any]:
        """What else must be equal for two speeds to be compared: on a CPU its threads."""
        return {"threads": default_threads()} if self._engine.info.device == "cpu" else {}

    def __call__(self, workload: Workload) -> Speed:
        """Warm up, then measure five rounds of distinct prompts, so that no prefix cache can help.

        Raises:
            UnsupportedError: pytest-benchmark is switched off, as it is under pytest-xdist.
        """
        if workload not in self._measured:
            self._measured[workload] = self._measure(workload)
        return self._measured[workload]

    def _measure(self, workload: Workload) -> Speed:
        if self._benchmark is not None and self._benchmark.disabled:
            raise UnsupportedError(
                "pytest-benchmark is switched off (as it is under pytest-xdist)",
                "run the throughput tests with -n0 and without --benchmark-disable",
            )
        before = self._engine.calibrate()
        self._unused = iter(_batches(self._engine, workload, attempts=ATTEMPTS))
        if self._benchmark is None:
            _, *seconds = [self._one_round(workload, prompts) for prompts in islice(self._unused, WARM_UP_ROUNDS + ROUNDS)]
            return self._speed(workload, seconds, before, self._engine.calibrate())

        def fresh() -> tuple[tuple[list[list[int]]], dict[str, Any]]:
            return (next(self._unused),), {}

        self._benchmark.extra_info.update(asdict(workload), tokens_per_round=workload.tokens, cell=str(self._engine.spec))
        one_round = partial(self._one_round, workload)
        self._benchmark.pedantic(one_round, setup=fresh, rounds=ROUNDS, warmup_rounds=WARM_UP_ROUNDS)
        return self._speed(workload, self._benchmark.stats.stats.data, before, self._engine.calibrate())

    def observe(
        self, engine: Engine, previous: Mapping[str, Any] | None, *, workload: Workload, refuse: Callable[[Speed], None]
    ) -> dict[str, Any]:
        """This session's speed, appended to those recorded so far.

        refuse: called with a speed during which the device's own rate moved: it would spoil the record.
        """
        other = self if engine is self._engine else Throughput(engine, None)
        steady = other.fair(other(workload))
        if not steady.is_fair():
            refuse(steady)
        return steady.record(previous)

    def fair(self, speed: Speed, recorded: Sequence[Session] = ()) -> Speed:
        """``speed`` if the device held still for it, or else what is measured again until it does; three times at most.

        Other work on the host comes and goes within seconds, and pytest-benchmark keeps only the first measurement.
        """
        while not speed.is_fair(recorded) and (batches := list(islice(self._unused, ROUNDS))):
            before = self._engine.calibrate()
            seconds = [self._one_round(speed.workload, prompts) for prompts in batches]
            speed = self._speed(speed.workload, seconds, before, self._engine.calibrate())
        return speed

    def confirm(self, workload: Workload) -> Speed:
        """Measure on four fresh starts of the engine, which show one unlucky start (docs/methods.md#prediction-bound).

        A round of the answer is the median of one start; its calibration is the median over the starts.
        """
        seconds, before, after = [], [], []
        for _ in range(FRESH_STARTS):
            self._engine.restart()
            warm_up, *batches = _batches(self._engine, workload)
            self._one_round(workload, warm_up)
            before.append(self._engine.calibrate())
            seconds.append(median(self._one_round(workload, prompts) for prompts in batches))
            after.append(self._engine.calibrate())
        return self._speed(workload, seconds, _median_rates(before), _median_rates(after))

    def _one_round(self, workload: Workload, prompts: list[list[int]]) -> float:
        """Seconds of one round.

        Raises:
            EngineError: the engine did not keep the output length, so that rates mean nothing.
        """
        start = time.perf_counter()
        answers = self._engine.generate(prompts, max_tokens=workload.new_tokens, ignore_eos=True)
        seconds = time.perf_counter() - start
        if any(len(answer.token_ids) != workload.new_tokens for answer in answers):
            raise EngineError(f"{self._engine.spec} did not generate exactly {workload.new_tokens} tokens a prompt, though told to")
        return seconds

    def _speed(self, workload: Workload, seconds: Sequence[float], before: Calibration, after: Calibration) -> Speed:
        on_cpu = self._engine.info.device == "cpu"
        return Speed(
            workload=workload,
            rounds=tuple(workload.tokens / duration for duration in seconds),
            before=before,
            after=after,
            yardstick=_yardstick(self._engine, workload),
            drift_bound=CPU_DRIFT if on_cpu else CUDA_DRIFT,
            shortfall_bound=CPU_SHORTFALL if on_cpu else CUDA_SHORTFALL,
        )


def _median_rates(calibrations: Sequence[Calibration]) -> Calibration:
    names = asdict(calibrations[0])
    return Calibration(**{name: median(getattr(calibration, name) for calibration in calibrations) for name in names})


def _batches(engine: Engine, workload: Workload, *, attempts: int = 1) -> list[list[list[int]]]:
    prompts = engine.model.sample_prompts((WARM_UP_ROUNDS + attempts * ROUNDS) * workload.batch, workload.prompt_tokens)
    return [prompts[start : start + workload.batch] for start in range(0, len(prompts), workload.batch)]


def _yardstick(engine: Engine, workload: Workload) -> Yardstick:
    """What bounds this workload: arithmetic in prefill, reading the weights in decode, the host where the weights are small."""
    host_bytes = HOST_BOUND_BYTES if engine.info.device != "cpu" or workload.phase == "decode" else 0
    if engine.memory().weights_bytes < host_bytes:
        return "python_loops_per_second"
    return "matmul_flops_per_second" if workload.phase == "prefill" else "copy_bytes_per_second"
