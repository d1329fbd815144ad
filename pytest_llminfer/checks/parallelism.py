"""Cells that are spread over ranks: as many processes as asked for, on devices of their own, each with its share of the weights."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_llminfer.checks.offenders import first_offenders
from pytest_llminfer.checks.storage import FUSING, VOCABULARY_BLOCK
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.models.shape import item_bytes
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pytest_llminfer.checks.accuracy import Answer
    from pytest_llminfer.models.shape import ModelShape, WeightShape
    from pytest_llminfer.observations import Rank

SHARDED: dict[str, frozenset[str]] = {
    "sglang": frozenset({"embedding", "attention", "mlp", "bias", "lm_head"}),
    "transformers": frozenset({"attention", "mlp", "bias"}),
    "vllm": frozenset({"embedding", "attention", "mlp", "bias", "lm_head"}),
}
"""Engine → the roles of weights of which each rank of a tensor-parallel group holds a part; the others are held by all."""

TOLERANCE = 0.003
_LEAST_ACCURACY = 0.1


def expected_rank_weights(
    *, shape: ModelShape, dtype: str, quantization: str, engine: str, tp: int, pp: int, plan: Collection[str] = ()
) -> dict[int, int]:
    """Bytes of weights that one rank holds, by its pipeline rank; all tensor ranks of a stage hold as much.

    plan: the modules that the engine says it shards; asked only about embedding and output matrix, which versions of one engine
    treat differently: attention and mlp must be sharded whatever it says. Layers are dealt to pipeline stages evenly; the
    embedding is on the first stage, final norm and output matrix on the last.

    Raises:
        UnsupportedError: an engine, a quantization or a split whose shares are not known here: a visible skip.
    """
    if engine not in SHARDED or quantization != "none":
        raise UnsupportedError(f"how {engine} spreads weights with quantization {quantization!r} is not known here")
    if shape.layers % pp:
        raise UnsupportedError(f"{shape.layers} layers do not divide by pp={pp}: which stage gets more is the engine's choice")
    ends = {weight.role for weight in shape.parameters() if weight.name.removesuffix(".weight") in plan}
    sharded = SHARDED[engine] | (ends & {"embedding", "lm_head"})
    stages = dict.fromkeys(range(pp), 0)
    for weight in shape.parameters():
        size = _rank_elements(weight, shape, engine, tp, sharded) * item_bytes(dtype)
        for stage in _stages(weight, shape, pp):
            stages[stage] += size
    return stages


def _stages(weight: WeightShape, shape: ModelShape, pp: int) -> tuple[int, ...]:
    numbers = [int(word) for word in weight.name.split(".") if word.isdigit()]
    if numbers:
        return (numbers[0] * pp // shape.layers,)
    if weight.role in ("embedding", "position"):
        return tuple(sorted({0, pp - 1})) if shape.tied and weight.role == "embedding" else (0,)
    return (pp - 1,)


def _rank_elements(weight: WeightShape, shape: ModelShape, engine: str, tp: int, sharded: Collection[str]) -> int:
    rows = weight.shape[0]
    if weight.role in ("embedding", "lm_head") and engine in FUSING:
        rows = -(-rows // VOCABULARY_BLOCK) * VOCABULARY_BLOCK
    elements = rows * weight.elements // weight.shape[0]
    if weight.role not in sharded or ".o_proj.bias" in weight.name or ".down_proj.bias" in weight.name:
        return elements
    if ".k_proj." in weight.name or ".v_proj." in weight.name:
        # Each rank has at least one KV head: with more ranks than heads they are held several times.
        return elements * max(1, shape.kv_heads // tp) // shape.kv_heads
    return elements // tp


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


def check_rank_weights(*, ranks: Sequence[Rank], expected: Mapping[int, int], engine: str) -> Verdict:
    """Whether each rank holds its share of the weights, neither more nor less.

    expected: bytes by pipeline rank, from :func:`expected_rank_weights`. A rank that holds everything passes every comparison of
    outputs; only its memory tells.
    """
    lines = [] if ranks else ["nothing was compared: the engine reported no ranks"]
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
        threshold_source=f"the model's shape, and what {engine} shards: {', '.join(sorted(SHARDED[engine]))}",
        smallest_detectable=f"{TOLERANCE:.1%} of a rank's weights",
        advice="a rank with too much holds a copy of what should be sharded; with too little, look for parameters left on meta",
        details=first_offenders(lines),
    )


def check_reference_answers(*, answers: Mapping[str, Answer]) -> Verdict:
    """Whether one GPU answers well enough for a comparison with it to mean anything: a model that knows nothing loses nothing."""
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
        threshold_source="below it a drop of some points cannot be told from chance",
        smallest_detectable="none: this is about the reference",
        advice="use a trained model, or questions that it can answer",
        details=tuple(lines),
    )


def _place(place: tuple[int, int, int]) -> str:
    return "dp rank {}, pp rank {}, tp rank {}".format(*place)
