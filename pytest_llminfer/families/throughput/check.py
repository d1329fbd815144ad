"""Throughput against recorded sessions: the accelerator's part on any host, the host's part on its own, and what was counted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from pytest_llminfer.families.throughput import counts, parts
from pytest_llminfer.families.throughput.parts import MOST_CORRECTION, Part, State
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.families.throughput.session import Session

_LOOK = "look at what changed (kernels, graphs, attention backend, versions), or record the new speed if it is meant"
_RECORD = "record this host's speed with --update-baselines: it is kept beside what is recorded"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What of a session may be judged by the recorded ones. remarks: what was not, and why.

    only_doubt: a part beyond its limit is no proof, since nothing is known of the host that it was recorded on.
    """

    parts: tuple[Part, ...]
    counts: tuple[counts.Count, ...]
    remarks: tuple[str, ...]
    only_doubt: bool = False


def compare(
    *, sessions: Sequence[Session], recorded: Sequence[Session], on_cpu: bool, untraced: str = "", new_kernels: str = ""
) -> Comparison:
    """What may be compared of this start (the first of ``sessions``) and of fresh ones after it.

    on_cpu: whether the engine computes on the host's processor. untraced: why nothing is known of the accelerator, in words.
    new_kernels: those that run more often than in the record, by name.
    """
    first = sessions[0]
    counted = counts.compare(first, recorded)
    more = [count for count in counted if count.grew]
    remarks = [str(count) for count in more]
    if more and new_kernels:
        remarks.append(f"kernels that are new or run more often: {new_kernels}")
    known = [session for session in recorded if session.host is not None]
    if recorded and not known:
        remarks.append(
            "only bare wall times are recorded, of a host that nobody knows: record this session with --update-baselines"
        )
        return Comparison((parts.wall(sessions, recorded),), (), tuple(remarks), only_doubt=not on_cpu)
    if untraced:
        remarks.append(f"the accelerator's part is not judged: {untraced}")
    mine = parts.of_this_host(first, known, on_cpu=on_cpu)
    found = [parts.kernels(sessions, known)]
    if known and not mine:
        remarks.append(_another_host(first, known))
        found.append(parts.host(sessions, known, parts.ANOTHER_HOST) if more else None)
    elif first.device is None or all(entry.device is None for entry in mine):
        found.append(parts.over_reference(sessions, mine, parts.PROCESSOR if on_cpu else parts.UNTRACED))
    else:
        found.append(parts.host(sessions, mine))
    judged = tuple(replace(part, strict=bool(more)) for part in found if part is not None)
    return Comparison(judged, counted, tuple(remarks))


def _another_host(session: Session, recorded: Sequence[Session]) -> str:
    own = session.host
    others = [entry.host for entry in recorded if entry.host is not None]
    if own is None or own.cpu not in {other.cpu for other in others}:
        return "another host than any recorded one, by its processor: its part of a step is not judged"
    near = min((other.reference_seconds for other in others), key=lambda seconds: abs(math.log(own.reference_seconds / seconds)))
    ratio = own.reference_seconds / near
    return f"another host than any recorded one (a frozen step takes {ratio:.2f} times as long): its part of a step is not judged"


def check_throughput(
    *,
    sessions: Sequence[Session],
    recorded: Sequence[Session],
    metric: str,
    tokens_per_step: float,
    on_cpu: bool,
    untraced: str = "",
    new_kernels: str = "",
) -> Verdict:
    """Whether a step takes as long as in the recorded sessions.

    sessions: of this start of the engine, and of fresh starts that were made because it was suspicious. metric: what was measured,
    in words ("decode throughput, batch 8"). tokens_per_step: what makes tokens a second of seconds a step. The rest as in
    :func:`compare`.

    FAIL: a part is slower than its limit in this start and in every fresh one; on a processor only if bare wall time grew too.
    INCONCLUSIVE: suspicious, and no fresh start was made; or nothing may be compared. INVALID: the accelerator's own rate is more
    than 10 % below its slowest record. A count that grew while no part did is told, and fails nothing.
    """
    comparison = compare(sessions=sessions, recorded=recorded, on_cpu=on_cpu, untraced=untraced, new_kernels=new_kernels)
    outcome, reason, advice = _decide(comparison, sessions, recorded, on_cpu=on_cpu)
    rate = tokens_per_step / sessions[0].step_seconds
    before = median(tokens_per_step / session.step_seconds for session in recorded) if recorded else None
    wall = Measurement(metric, rate, "tokens/s", sessions[0].blocks, "wall time, the median of the blocks", baseline=before)
    return Verdict(
        outcome=outcome,
        claim=f"{metric}: no part of a step has become slower than in the recorded sessions",
        key=f"{rate:,.0f} tok/s",
        measurements=(
            wall,
            *map(_measurement, comparison.parts),
            *map(_counted, comparison.counts),
            *_context(sessions[0], recorded),
        ),
        threshold="; ".join(f"{part.name} at most {part.limit:.1%} slower" for part in comparison.parts) or "nothing is compared",
        threshold_source=f"{len(recorded)} recorded session{'s' * (len(recorded) != 1)}, and how far starts are known to spread",
        smallest_detectable="; ".join(f"{part.name} +{part.limit:.1%}" for part in comparison.parts) or "nothing",
        advice=advice,
        details=tuple(line for line in (reason, *comparison.remarks) if line),
    )


def _decide(
    comparison: Comparison, sessions: Sequence[Session], recorded: Sequence[Session], *, on_cpu: bool
) -> tuple[Outcome, str, str]:
    """Outcome, reason and advice."""
    if is_throttled(sessions[0], recorded):
        fallen = _shortfall(sessions[0], recorded)
        reason = f"the accelerator's own rate is {fallen:.0%} below the slowest recorded one, at most {MOST_CORRECTION:.0%}"
        return Outcome.INVALID, reason, "look at clocks, power limits and other work on the accelerator, and measure again"
    if not comparison.parts:
        return Outcome.INCONCLUSIVE, "nothing is recorded that this session may be compared with", _RECORD
    slow = [part for part in comparison.parts if part.state is not State.STEADY]
    if not slow:
        return Outcome.PASS, "", ""
    return _decide_slow(slow, comparison, sessions, recorded, on_cpu=on_cpu)


def _decide_slow(
    slow: Sequence[Part], comparison: Comparison, sessions: Sequence[Session], recorded: Sequence[Session], *, on_cpu: bool
) -> tuple[Outcome, str, str]:
    reason = "; ".join(f"{part.name} {part.change:+.1%}, at most {part.limit:+.1%}" for part in slow)
    if comparison.only_doubt:
        return Outcome.INCONCLUSIVE, reason, _RECORD
    if all(part.state is State.SUSPICIOUS for part in slow):
        return Outcome.INCONCLUSIVE, reason, "start the engine afresh twice and measure again"
    raw = parts.wall(sessions, [session for session in recorded if session.host is not None] or recorded)
    if on_cpu and raw.change <= 0:
        reason += f", but bare wall time {raw.change:+.1%}: this host runs otherwise than the recorded one did"
        return Outcome.INCONCLUSIVE, reason, f"measure again while the machine has nothing else to do, or {_RECORD}"
    return Outcome.FAIL, reason, _LOOK


def is_throttled(session: Session, recorded: Sequence[Session]) -> bool:
    """Whether the accelerator's own rate is so far below its record that no comparison is fair; a fresh start changes nothing."""
    return _shortfall(session, recorded) > MOST_CORRECTION


def _shortfall(session: Session, recorded: Sequence[Session]) -> float:
    """How far the accelerator's own rate lies below the slowest recorded one, as a share."""
    slowest = min((entry.device.rate for entry in recorded if entry.device is not None), default=0.0)
    return max(0.0, 1 - session.device.rate / slowest) if session.device is not None and slowest else 0.0


def _measurement(part: Part) -> Measurement:
    starts = f"{len(part.starts) - 1} fresh starts, the faster" if len(part.starts) > 1 else "one start"
    return Measurement(
        f"{part.name}, slower than recorded",
        100 * part.change,
        "%",
        len(part.recorded),
        starts,
        baseline=0.0,
        limit=100 * part.limit,
    )


def _counted(count: counts.Count) -> Measurement:
    return Measurement(f"{count.name} a step", count.now, baseline=count.recorded, limit=count.recorded * (1 + counts.MORE))


def _context(session: Session, recorded: Sequence[Session]) -> list[Measurement]:
    """What the parts were made of: the accelerator's seconds, the host's share, the frozen step."""
    found = []
    if session.device is not None:
        known = [1e3 * entry.device.busy_seconds for entry in recorded if entry.device is not None]
        found.append(
            Measurement(
                "busy a step",
                1e3 * session.device.busy_seconds,
                "ms",
                session.device.steps,
                baseline=median(known) if known else None,
            )
        )
        found.append(Measurement("host's share of a step", 100 * session.host_share, "%"))
    if session.host is not None:
        hosts = [1e3 * entry.host.reference_seconds for entry in recorded if entry.host is not None]
        seconds = 1e3 * session.host.reference_seconds
        found.append(
            Measurement("frozen step", seconds, "ms", session.blocks + 1, session.host.reference, median(hosts) if hosts else None)
        )
    return found
