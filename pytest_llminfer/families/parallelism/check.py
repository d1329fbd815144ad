"""Cells that are split over ranks: as many processes as asked for, on devices of their own, each with its share of the weights."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.families.accuracy.grading import Answer
    from pytest_llminfer.observations.engine import Rank
    from pytest_llminfer.predict.rules import EngineRules

TOLERANCE = 0.003
_LEAST_ACCURACY = 0.1


def check_ranks(*, ranks: Sequence[Rank], tp: int, pp: int, dp: int) -> Verdict:
    """Whether tp x pp x dp processes hold the model, each place taken once, and no two ranks share an accelerator."""
    expected = {(d, p, t) for d in range(dp) for p in range(pp) for t in range(tp)}
    found = Counter((rank.dp_rank, rank.pp_rank, rank.tp_rank) for rank in ranks)
    lines = [] if ranks else ["nothing was compared: the engine reported no ranks"]
    if len(ranks) != len(expected):
        lines.append(f"{len(ranks)} ranks instead of {len(expected)}")
    lines += [f"no process has {_place(place)}" for place in sorted(expected - found.keys())]
    lines += [f"{count} processes have {_place(place)}" for place, count in sorted(found.items()) if count > 1]
    lines += [f"there should be no {_place(place)}" for place in sorted(found.keys() - expected)]
    pids = Counter(rank.pid for rank in ranks)
    lines += [f"process {pid} stands for {count} ranks" for pid, count in pids.items() if count > 1]
    devices = Counter(rank.device for rank in ranks if rank.device != "cpu")
    lines += [f"{count} ranks share the accelerator {device}" for device, count in devices.items() if count > 1]
    on_cpu = [rank for rank in ranks if rank.device == "cpu"]
    if 0 < len(on_cpu) < len(ranks):
        lines += [f"{_place((rank.dp_rank, rank.pp_rank, rank.tp_rank))} is on the CPU, others are not" for rank in on_cpu]
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"the model is held by {len(expected)} processes: dp={dp} x pp={pp} x tp={tp}",
        key=f"{len(ranks)} ranks",
        measurements=(
            Measurement("ranks", len(ranks), "processes", len(ranks), f"expected {len(expected)}"),
            Measurement("accelerators", len(devices), "devices", len(ranks), ", ".join(sorted({r.device for r in ranks}))),
        ),
        threshold="every place taken by one process of its own, on an accelerator of its own",
        threshold_source="the cell",
        smallest_detectable="one process",
        advice="look at the engine's log for a group that was not formed, and at CUDA_VISIBLE_DEVICES of each worker",
        details=first_offenders(lines),
    )


def check_rank_weights(*, ranks: Sequence[Rank], expected: Mapping[int, int], engine: EngineRules) -> Verdict:
    """Whether each rank holds its share of the weights, neither more nor less.

    expected: bytes by pipeline rank, from :func:`expected_rank_weights`. A rank that holds everything passes every comparison of
    outputs; only its memory shows it.
    """
    lines = [] if ranks else ["nothing was compared: the engine reported no ranks"]
    shards = sorted(engine.splitting.roles) if engine.splitting is not None else []
    for rank in ranks:
        share = expected.get(rank.pp_rank)
        place = f"{_place((rank.dp_rank, rank.pp_rank, rank.tp_rank))} ({rank.name}, process {rank.pid})"
        if share is None:
            lines.append(f"{place}: no such stage")
        elif abs(rank.weights_bytes - share) > TOLERANCE * share:
            lines.append(f"{place}: {rank.weights_bytes:,} bytes instead of {share:,} ({rank.weights_bytes / share - 1:+.1%})")
    held = [rank.weights_bytes for rank in ranks]
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="each rank holds its share of the weights",
        key=f"{max(held, default=0) / 2**20:,.2f} MiB/rank",
        measurements=(
            Measurement("most of a rank", max(held, default=0), "bytes", len(held)),
            Measurement("least of a rank", min(held, default=0), "bytes", len(held)),
            Measurement("expected", max(expected.values()), "bytes", len(expected), "of the fullest stage"),
        ),
        threshold=f"within {TOLERANCE:.1%} of the share",
        threshold_source="the model's shape" + (f", and what {engine.name} shards: {', '.join(shards)}" if shards else ""),
        smallest_detectable=f"{TOLERANCE:.1%} of a rank's weights",
        advice="a rank with too much holds a copy of what should be sharded; with too little, look for parameters left on meta",
        details=first_offenders(lines),
    )


def check_reference_answers(*, answers: Mapping[str, Answer]) -> Verdict:
    """Whether one GPU answers well enough for a comparison with it to mean anything: a model without skill cannot lose any."""
    right = sum(answer.flexible for answer in answers.values())
    share = right / len(answers) if answers else 0.0
    outcome, lines = Outcome.PASS, []
    if not answers:
        outcome, lines = Outcome.FAIL, ["nothing was compared: no questions were asked"]
    elif share < _LEAST_ACCURACY:
        outcome, lines = Outcome.INCONCLUSIVE, [f"{share:.1%} of answers are right: a fault would hardly show"]
    return Verdict(
        outcome=outcome,
        claim="one GPU answers well enough to be a reference",
        key=f"{share:.1%}",
        measurements=(Measurement("right answers", right, "questions", len(answers), f"{share:.1%}"),),
        threshold=f"at least {_LEAST_ACCURACY:.0%} right",
        threshold_source="below it a drop of some points cannot be distinguished from chance",
        smallest_detectable="none: this is about the reference",
        advice="use a trained model, or questions that it can answer",
        details=tuple(lines),
    )


def _place(place: tuple[int, int, int]) -> str:
    return "dp rank {}, pp rank {}, tp rank {}".format(*place)
