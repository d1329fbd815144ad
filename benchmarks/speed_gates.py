"""How often the gates of throughput fail a clean session, and how often they find a slowdown: simulated sessions of one engine.

    python benchmarks/speed_gates.py              # writes benchmarks/speed_gates.json, and prints the table
    python benchmarks/speed_gates.py --sessions=200

A session is its logarithms: what was recorded, this start, and the fresh starts that it asks for. Noise is that of a start: normal,
Student's with 3 degrees of freedom, or normal with one start in fifty slower by 10 to 30 %; of the spread that was measured. A gate
is the shipped one (``families.throughput.parts``). Another host: its part is stretched, and its frozen step with it, by a factor of
up to two either way, give or take the 5 % by which hosts differ beside their frozen steps.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.families.throughput import parts
from pytest_llminfer.families.throughput.check import check_throughput
from pytest_llminfer.families.throughput.parts import Part, State
from pytest_llminfer.families.throughput.session import Device, Host, Session

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).with_suffix(".json")
SESSIONS, RECORDED = 2000, (1, 5)
FRESH = 2
Z = 1.96


@dataclass(frozen=True)
class Case:
    """A gate, how far its starts spread, and the slowdown that it must find."""

    name: str
    gate: parts.Gate
    spread: float
    slowdown: float


CASES = (
    Case("kernels, G", parts.KERNELS, 0.001, 0.02),
    Case("host's part, h", parts.HOST, 0.02, 0.15),
    Case("step on a processor", parts.PROCESSOR, 0.032, 0.25),
)
"""Spreads: 0.06 % measured for G, 2.8 % for a whole step over a frozen one with hosts under load among them, 3.2 % on two cores."""
NOISE: dict[str, Callable[[random.Random, float], float]] = {
    "normal": lambda rng, spread: rng.gauss(0, spread),
    "heavy tails": lambda rng, spread: spread / math.sqrt(3) * rng.gauss(0, 1) / math.sqrt(rng.gammavariate(1.5, 2) / 3),
    "slow starts": lambda rng, spread: rng.gauss(0, spread) + (rng.uniform(0.1, 0.3) if rng.random() < 1 / 50 else 0.0),
}


@dataclass(frozen=True)
class Rate:
    """One row: shares of the sessions that failed and that asked for a fresh start, with the 95 % limits of the first."""

    gate: str
    noise: str
    recorded: int
    slowdown: float
    sessions: int
    failed: float
    lower: float
    upper: float
    restarted: float


def simulate(case: Case, noise: str, recorded: int, slowdown: float, sessions: int, rng: random.Random) -> Rate:
    """Many sessions of one gate."""
    draw = NOISE[noise]
    failed = restarted = 0
    for _ in range(sessions):
        record = tuple(draw(rng, case.spread) for _ in range(recorded))
        starts = [math.log1p(slowdown) + draw(rng, case.spread)]
        state = Part(case.name, case.gate, record, tuple(starts)).state
        restarted += state is State.SUSPICIOUS
        while len(starts) <= FRESH and state is not State.STEADY:
            starts.append(math.log1p(slowdown) + draw(rng, case.spread))
            state = Part(case.name, case.gate, record, tuple(starts)).state
        failed += state is State.SLOWER
    return _rate(case.name, noise, recorded, slowdown, sessions, failed, restarted)


def other_hosts(sessions: int, rng: random.Random) -> Rate:
    """Clean sessions on a host that is up to twice as fast or slow as the recorded one, by the whole check."""
    failed = restarted = 0
    for _ in range(sessions):
        record = [_session(rng, 1.0, 1.0)]
        factor = math.exp(rng.uniform(-math.log(2), math.log(2)))
        here = [_session(rng, factor, factor * math.exp(rng.gauss(0, 0.05))) for _ in range(1 + FRESH)]
        first = check_throughput(sessions=here[:1], recorded=record, metric="decode", tokens_per_step=8, on_cpu=False)
        if first.outcome.value == "pass":
            continue
        restarted += 1
        last = check_throughput(sessions=here, recorded=record, metric="decode", tokens_per_step=8, on_cpu=False)
        failed += last.outcome.value != "pass"
    return _rate("the whole check", "another host, by its frozen step", 1, 0.0, sessions, failed, restarted)


def _session(rng: random.Random, reference: float, host: float) -> Session:
    """host, reference: how many times as long as usual. Each start has noise of its own."""
    busy, rest, frozen = 1.2e-3 * math.exp(rng.gauss(0, 0.001)), 1.8e-3 * host * math.exp(rng.gauss(0, 0.02)), 2e-3 * reference
    device = Device(busy, 4e12 * math.exp(rng.gauss(0, 0.008)), 16, 2880, 32, 16, 48)
    return Session(
        busy + rest, 12, math.log((busy + rest) / frozen), math.log(rest / frozen), Host("Xeon", frozen, "torch-1"), device
    )


def _rate(gate: str, noise: str, recorded: int, slowdown: float, sessions: int, failed: int, restarted: int) -> Rate:
    """With Wilson's interval."""
    share, square = failed / sessions, Z * Z / sessions
    centre, width = share + square / 2, Z * math.sqrt(share * (1 - share) / sessions + square / 4 / sessions)
    limits = [(centre - width) / (1 + square), (centre + width) / (1 + square)]
    return Rate(gate, noise, recorded, slowdown, sessions, share, max(limits[0], 0.0), limits[1], restarted / sessions)


def run(sessions: int, seed: int = 1) -> list[Rate]:
    """Every gate under every noise: nothing changed, and its slowdown; then other hosts."""
    rng = random.Random(seed)  # noqa: S311 - a simulation
    rates = [
        simulate(case, noise, recorded, slowdown, sessions, rng)
        for case in CASES
        for recorded in RECORDED
        for noise in NOISE
        for slowdown in (0.0, case.slowdown)
    ]
    return [*rates, other_hosts(sessions, rng)]


def main() -> None:
    """Simulate, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    given = parser.parse_args()
    rates = run(given.sessions)
    RESULTS.write_text(json.dumps([asdict(rate) for rate in rates], indent=1) + "\n", encoding="utf-8")
    print("| gate | noise | recorded | slowdown | FAIL | fresh starts |\n|---|---|---|---|---|---|")
    for rate in rates:
        limits = f"{rate.failed:.2%} ({rate.lower:.2%} to {rate.upper:.2%})"
        print(f"| {rate.gate} | {rate.noise} | {rate.recorded} | {rate.slowdown:.0%} | {limits} | {rate.restarted:.1%} |")


if __name__ == "__main__":
    main()
