"""Measure an engine's speed: blocks of fixed work with a frozen step between them, and what its accelerator does in a few steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llminfer.engines.launchers.local import default_threads
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.throughput.session import Session, summarise_session
from pytest_llminfer.hardware import processor_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.observations.speed import StepTrace

BLOCKS, WARM_UP_BLOCKS, FRESH_STARTS = 12, 1, 2
TRACED_STEPS = 8
"""At least; a trace of all steps of a block would take longer to read than the block takes."""
KEPT_SESSIONS = 40
"""Of one processor's model."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What one block asks for: ``batch`` prompts of ``prompt_tokens``, each continued by exactly ``new_tokens``.

    A step is one forward pass over the batch, and makes one new token of each prompt.

    Attributes:
        phase: ``prefill`` counts prompt tokens per second, ``decode`` generated ones.
        batch: Prompts of a block.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens generated for each prompt.
    """

    phase: str
    batch: int
    prompt_tokens: int
    new_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens of a block that its rate counts."""
        return self.batch * (self.prompt_tokens if self.phase == "prefill" else self.new_tokens)

    @property
    def traced_tokens(self) -> int:
        """New tokens of a prompt while the accelerator is traced."""
        return min(self.new_tokens, 2 * TRACED_STEPS)

    @property
    def traced_batches(self) -> int:
        """Batches that are traced, so that there are steps enough."""
        return -(-TRACED_STEPS // self.traced_tokens)


WORKLOADS = {"prefill": Workload("prefill", 8, 256, 1), "decode": Workload("decode", 8, 16, 64)}


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured of one workload.

    Attributes:
        workload: What each block asked for.
        session: The session as it is recorded.
        kernels: Name of a kernel to how often it ran in the traced steps; empty where nothing was traced.
        untraced: Why nothing was traced; empty where something was, and on a CPU.
    """

    workload: Workload
    session: Session
    kernels: Mapping[str, int]
    untraced: str = ""

    def record(self, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        """This session, appended to those recorded so far, of which the last 40 of each processor's model are kept."""
        entries = [*(previous["sessions"] if previous else []), self.session.to_dict()]
        by_cpu: dict[str, list[int]] = {}
        for number, entry in enumerate(entries):
            by_cpu.setdefault((entry.get("host") or {}).get("cpu", ""), []).append(number)
        kept = {number for numbers in by_cpu.values() for number in numbers[-KEPT_SESSIONS:]}
        return {"sessions": [entry for number, entry in enumerate(entries) if number in kept], "kernels": dict(self.kernels)}


def sessions(expected: Mapping[str, Any], workload: Workload) -> list[Session]:
    """The recorded sessions of a baseline."""
    sizes = {"batch_tokens": workload.tokens, "steps": workload.new_tokens}
    return [Session.from_dict(entry, **sizes) for entry in expected["sessions"]]


def measure(engine: Engine, workload: Workload, benchmark: Any = None) -> Speed:
    """Time twelve blocks of distinct prompts, so that no prefix cache can help, then trace the accelerator.

    The trace comes last: it slows the host. benchmark: the fixture of pytest-benchmark, which shows the same blocks with the way to
    the worker and back; None measures without it.
    """
    wanted = WARM_UP_BLOCKS + BLOCKS + workload.traced_batches
    batches = _batches(engine, workload, wanted)
    blocks: list[float] = []
    references: list[float] = []
    which = ""

    def reference() -> None:
        nonlocal which
        answer = engine.reference_step()
        which = answer.version
        references.append(answer.seconds)

    def block(prompts: list[list[int]]) -> None:
        blocks.append(engine.time_generation(prompts, new_tokens=workload.new_tokens) / workload.new_tokens)

    def before() -> tuple[tuple[list[list[int]]], dict[str, Any]]:
        reference()
        return (next(batches),), {}

    if benchmark is None:
        for _ in range(WARM_UP_BLOCKS + BLOCKS):
            block(*before()[0])
    else:
        benchmark.extra_info.update(asdict(workload), tokens_per_round=workload.tokens, cell=str(engine.spec))
        benchmark.pedantic(block, setup=before, rounds=BLOCKS, warmup_rounds=WARM_UP_BLOCKS)
    reference()
    trace, untraced = _trace(engine, list(batches), workload)
    session = summarise_session(
        blocks=blocks[WARM_UP_BLOCKS:],
        references=references[WARM_UP_BLOCKS:],
        cpu=processor_name(),
        reference=which,
        trace=trace,
        rate=_rate(engine, workload) if trace else 0.0,
    )
    return Speed(workload, session, trace.names if trace else {}, untraced)


def _batches(engine: Engine, workload: Workload, count: int) -> Iterator[list[list[int]]]:
    prompts = iter(engine.model.sample_prompts(count * workload.batch, workload.prompt_tokens))
    return iter([list(islice(prompts, workload.batch)) for _ in range(count)])


def _trace(engine: Engine, batches: list[list[list[int]]], workload: Workload) -> tuple[StepTrace | None, str]:
    """What the accelerator did, or why nothing is known of it."""
    if not engine.supports("trace"):
        return None, "" if engine.info.device == "cpu" else f"{engine.spec.engine} shows nothing of what its accelerator does"
    try:
        return engine.trace(batches, new_tokens=workload.traced_tokens), ""
    except UnsupportedError as error:
        return None, str(error)


def _rate(engine: Engine, workload: Workload) -> float:
    """What bounds the phase: arithmetic in prefill, reading the weights in decode."""
    rates = engine.calibrate()
    return rates.matmul_flops_per_second if workload.phase == "prefill" else rates.copy_bytes_per_second


class Undecided(Protocol):
    """A speed that fresh starts may tell more about."""

    @property
    def speed(self) -> Speed:
        """Of the first start."""

    def undecided(self, fresh: Sequence[Session]) -> bool:
        """Whether one more fresh start could tell more."""


class Throughput:
    """Called with a workload, which is measured once.

    ``benchmark``: the fixture of pytest-benchmark, whose own JSON and comparisons keep working; None measures without it.
    """

    def __init__(self, engine: Engine, benchmark: Any) -> None:
        self._engine, self._benchmark = engine, benchmark
        self._measured: dict[Workload, Speed] = {}

    @property
    def conditions(self) -> dict[str, Any]:
        """What else must be equal for two speeds to be compared: on a CPU its threads."""
        return {"threads": default_threads()} if self._engine.info.device == "cpu" else {}

    def __call__(self, workload: Workload) -> Speed:
        """The speed of this start of the engine.

        Raises:
            UnsupportedError: pytest-benchmark is switched off, as it is under pytest-xdist.
        """
        if workload not in self._measured:
            if self._benchmark is not None and self._benchmark.disabled:
                raise UnsupportedError(
                    "pytest-benchmark is switched off (as it is under pytest-xdist)",
                    "run the throughput tests with -n0 and without --benchmark-disable",
                )
            self._measured[workload] = measure(self._engine, workload, self._benchmark)
        return self._measured[workload]

    def observe(self, engine: Engine, previous: Mapping[str, Any] | None, *, workload: Workload) -> dict[str, Any]:
        """This session's speed, appended to those recorded so far."""
        other = self if engine is self._engine else Throughput(engine, None)
        return other(workload).record(previous)

    @property
    def on_cpu(self) -> bool:
        """Whether the engine computes on the host's processor."""
        return self._engine.info.device == "cpu" and not self._engine.supports("trace")

    def confirm(self, judged: Undecided) -> list[Session]:
        """Sessions of fresh starts of the engine: two at most, and none that could tell nothing more."""
        found: list[Session] = []
        while len(found) < FRESH_STARTS and judged.undecided(found):
            self._engine.restart()
            found.append(measure(self._engine, judged.speed.workload).session)
        return found
