"""Parameter layouts of a model that is split over ranks: what each rank stores, and whether the ranks together hold the model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_llminfer.families.layout.check import check_layout, check_layout_unchanged, recorded_fields, summarise_layout
from pytest_llminfer.families.layout.differences import (
    bytes_by_dtype,
    device_differences,
    differences,
    grouped,
    ignored_lines,
    layout_differences,
    tie_differences,
)
from pytest_llminfer.families.layout.rank_contents import compare_contents
from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.predict.layout import asked_device, expected_rank_layouts
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pytest_llminfer.models.shape import ModelShape
    from pytest_llminfer.observations.layout import Layout, Parameter
    from pytest_llminfer.predict.layout import StoredWeight
    from pytest_llminfer.predict.rules import EngineRules

    Place = tuple[int, int]
    """Pipeline rank, tensor rank."""


def check_rank_layouts(  # noqa: PLR0913 - what a cell is, and what was found
    *,
    ranks: Sequence[Layout],
    shape: ModelShape,
    dtype: str,
    quantization: str,
    engine: EngineRules,
    tp: int = 1,
    pp: int = 1,
    plan: Collection[str] = (),
    group_size: int | None = None,
    asked: str = "",
    random_weights: bool = False,
) -> Verdict:
    """Whether every rank stores its part of every tensor as the cell implies; with one rank, :func:`check_layout`.

    Which part that is says the engine's profile, and how it is stored ``declared_formats``. plan: the modules that the engine says
    it shards. random_weights: ranks may then hold equal numbers, and contents are not compared
    (:func:`~pytest_llminfer.families.layout.rank_contents.compare_contents`).
    The other arguments are those of :func:`check_layout`.

    Raises:
        UnsupportedError: an engine, a quantization or a split whose storage is not known here.
    """
    parameters = [parameter for rank in ranks for parameter in rank.parameters]
    cell: dict[str, Any] = {
        "shape": shape,
        "dtype": dtype,
        "quantization": quantization,
        "engine": engine,
        "group_size": group_size,
    }
    if tp * pp == len(ranks) == 1:
        return check_layout(parameters=ranks[0].parameters, tied=ranks[0].tied, asked=asked, **cell)
    cell["device"] = asked_device(parameters, asked)
    expected = expected_rank_layouts(**cell, tp=tp, pp=pp, plan=plan)
    wholes = expected_rank_layouts(**cell, tp=1, pp=1)[0, 0]
    whole = {weight.parameter.name: weight.parameter for weight in wholes}
    found = {(rank.pp_rank, rank.tp_rank): rank for rank in ranks}
    of_ranks: list[tuple[Place, str]] = []
    for place, rank in found.items():
        weights = expected.get(place, ())
        held, kept = _kept_whole(rank.parameters, weights, whole)
        lines = [
            *tie_differences(rank.tied, shape.tied_pairs if place[0] == pp - 1 else ()),
            *(ignored_lines(rank.parameters, weights, asked) if asked and quantization == "none" else ()),
            *kept,
            *layout_differences(
                held, [w for w in weights if w.parameter.name not in _named(rank, held)], torch_dtype(dtype), quantization
            ),
        ]
        of_ranks += [(place, line) for line in lines] if weights else []
    contents = compare_contents(ranks=ranks, expected=expected, whole=whole) if not random_weights else None
    lines = [
        *_places(ranks, expected),
        *_by_ranks(of_ranks, pp),
        *(contents.lines if contents else ()),
        *device_differences(parameters),
    ]
    words = " ".join([f"tp={tp}"] * (tp > 1) + [f"pp={pp}"] * (pp > 1))
    described = f"{torch_dtype(dtype)}, {'unquantized' if quantization == 'none' else quantization}, {words}"
    once, copied = _once_and_copied(expected, whole)
    implied = [weight.parameter for weights in expected.values() for weight in weights]
    return _verdict(
        claim=f"every rank stores its part of each parameter as a {shape.architecture} model's configuration implies ({described})",
        parameters=parameters,
        expected=len(implied),
        lines=lines,
        extra=(
            *_histograms(found, expected, pp),
            Measurement(
                "held by all ranks",
                sum(parameter.stored_bytes for parameter in parameters),
                "bytes",
                len(ranks),
                f"expected {once + copied:,}: {once:,} dealt, {copied:,} in copies",
                once + copied,
            ),
            *((Measurement("weights whose content was compared", contents.compared, "weights", contents.all),) if contents else ()),
        ),
        source="the model's configuration, the quantization's storage rule, and what the engine deals to its ranks",
        smallest_detectable=contents.power if contents else "exact in storage; random weights: equal contents say nothing",
        advice="a rank that keeps the whole of a weight takes the memory of all; another dtype is a conversion that only "
        "that process made; two ranks with equal parts have loaded the same slice of the checkpoint",
    )


def summarise_ranks(ranks: Sequence[Layout]) -> dict[str, Any]:
    """Layouts as plain JSON for a baseline; ranks of a stage that store alike share one entry.

    Of one rank what :func:`summarise_layout` gives; of several ``{"ranks": [{"pp_rank", "tp_ranks", "parameters"}]}``.
    """
    if len(ranks) == 1:
        return summarise_layout(ranks[0].parameters)
    entries: list[dict[str, Any]] = []
    for rank in sorted(ranks, key=lambda rank: (rank.pp_rank, rank.tp_rank)):
        parameters = summarise_layout(rank.parameters)
        same = next((entry for entry in entries if (entry["pp_rank"], entry["parameters"]) == (rank.pp_rank, parameters)), None)
        if same is None:
            same = {"pp_rank": rank.pp_rank, "tp_ranks": [], "parameters": parameters}
            entries.append(same)
        same["tp_ranks"].append(rank.tp_rank)
    return {"ranks": entries}


def readable(expected: Mapping[str, Any]) -> Mapping[str, Any]:
    """What :func:`summarise_ranks` gave, if every tensor in it has its fields; otherwise what Python raises of that."""
    of_one_rank = [{"pp_rank": 0, "tp_ranks": [0], "parameters": expected}]
    for entry in expected.get("ranks", of_one_rank):
        _ = int(entry["pp_rank"]), list(map(int, entry["tp_ranks"]))
        sum(fields["stored_bytes"] for fields in recorded_fields(entry["parameters"]).values())
    return expected


def check_ranks_unchanged(*, ranks: Sequence[Layout], expected: Mapping[str, Any]) -> Verdict:
    """Whether every rank stores every tensor as recorded by :func:`summarise_ranks`, and no other is there."""
    if "ranks" not in expected and len(ranks) == 1:
        return check_layout_unchanged(parameters=ranks[0].parameters, expected=expected)
    recorded = {
        (entry["pp_rank"], tp_rank): recorded_fields(entry["parameters"])
        for entry in expected.get("ranks", ())
        for tp_rank in entry["tp_ranks"]
    }
    pp = 1 + max((stage for stage, _ in recorded), default=0)
    parameters = [parameter for rank in ranks for parameter in rank.parameters]
    of_ranks = [
        ((rank.pp_rank, rank.tp_rank), line)
        for rank in ranks
        for line in differences(rank.parameters, recorded.get((rank.pp_rank, rank.tp_rank), {}))
        if (rank.pp_rank, rank.tp_rank) in recorded
    ]
    tensors = [fields for rank in recorded.values() for fields in rank.values()]
    before = sum(fields["stored_bytes"] for fields in tensors)
    now = sum(parameter.stored_bytes for parameter in parameters)
    return _verdict(
        claim="every rank stores every parameter as in the baseline",
        parameters=parameters,
        expected=len(tensors),
        lines=[*_places(ranks, recorded), *_by_ranks(of_ranks, pp), *device_differences(parameters)],
        extra=(
            Measurement("bytes before", before, "bytes", len(tensors)),
            Measurement("bytes now", now, "bytes", len(parameters), baseline=before),
        ),
        source="the baseline",
        smallest_detectable="exact",
        advice="if the new storage is meant, record a new baseline",
    )


def _verdict(
    *,
    claim: str,
    parameters: Sequence[Parameter],
    expected: int,
    lines: list[str],
    extra: tuple[Measurement, ...],
    source: str,
    smallest_detectable: str,
    advice: str,
) -> Verdict:
    if not parameters:
        lines = ["nothing was compared: the engine reported no parameters"]
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=f"{len(parameters):,} tensors" if parameters else "no parameters",
        measurements=(
            Measurement("tensors", len(parameters), "tensors", len(parameters), f"expected {expected}", expected),
            *extra,
        ),
        threshold="every tensor of every rank equal in dtype, shape, packing and bytes, none missing, none extra",
        threshold_source=source,
        smallest_detectable=smallest_detectable,
        advice=advice,
        details=first_offenders(lines),
    )


def _kept_whole(
    parameters: Sequence[Parameter], weights: Sequence[StoredWeight], whole: Mapping[str, Parameter]
) -> tuple[list[Parameter], list[str]]:
    """The parameters but those that a rank keeps whole instead of its part, and a line for those."""
    parts = {weight.parameter.name: weight.parameter for weight in weights}
    kept = [
        parameter
        for parameter in parameters
        if (part := parts.get(parameter.name)) is not None
        and part.shape != whole[parameter.name].shape
        and parameter.shape == whole[parameter.name].shape
        and (parameter.dtype, parameter.stored_shape) == (part.dtype, whole[parameter.name].stored_shape)
    ]
    lines = grouped(
        (
            parameter.name,
            f"not sharded: the whole {list(parameter.shape)} instead of a part {list(parts[parameter.name].shape)}",
        )
        for parameter in kept
    )
    names = {parameter.name for parameter in kept}
    return [parameter for parameter in parameters if parameter.name not in names], lines


def _named(rank: Layout, held: Sequence[Parameter]) -> set[str]:
    """The names of what is a line already."""
    return {parameter.name for parameter in rank.parameters} - {parameter.name for parameter in held}


def _places(ranks: Sequence[Layout], expected: Iterable[Place]) -> list[str]:
    counted = Counter((rank.pp_rank, rank.tp_rank) for rank in ranks)
    return [
        *(f"{_place(place)}: no such rank has told what it stores" for place in sorted(set(expected) - counted.keys())),
        *(f"{_place(place)}: there should be no such rank" for place in sorted(counted.keys() - set(expected))),
        *(f"{_place(place)}: {count} ranks say that they are this one" for place, count in sorted(counted.items()) if count > 1),
    ]


def _by_ranks(lines: Iterable[tuple[Place, str]], pp: int) -> list[str]:
    """Each line once, after the ranks of which it is true."""
    places: dict[str, list[Place]] = {}
    for place, line in lines:
        places.setdefault(line, []).append(place)
    return [f"{' and '.join(_place(place, pp) for place in where)}: {line}" for line, where in places.items()]


def _place(place: Place, pp: int = 2) -> str:
    stage, rank = place
    return f"pp rank {stage}, tp rank {rank}" if pp > 1 else f"tp rank {rank}"


def _histograms(found: Mapping[Place, Layout], expected: Mapping[Place, Sequence[StoredWeight]], pp: int) -> Iterable[Measurement]:
    for place in sorted(found.keys() | expected.keys()):
        held = bytes_by_dtype(found[place].parameters) if place in found else {}
        implied = bytes_by_dtype(weight.parameter for weight in expected.get(place, ()))
        for dtype in sorted(held | implied):
            name, expects = f"{_place(place, pp)} stored in {dtype}", implied.get(dtype, 0)
            yield Measurement(name, held.get(dtype, 0), "bytes", spread=f"expected {expects:,}", baseline=expects)


def _once_and_copied(expected: Mapping[Place, Sequence[StoredWeight]], whole: Mapping[str, Parameter]) -> tuple[int, int]:
    """Bytes of the weights that are split over ranks, and of those that several hold, over all ranks."""
    dealt = copied = 0
    holders = Counter(weight.parameter.name for weights in expected.values() for weight in weights)
    for weights in expected.values():
        for weight in weights:
            name, taken = weight.parameter.name, weight.parameter.stored_bytes
            if holders[name] > 1 and weight.parameter.shape == whole[name].shape:
                copied += taken
            else:
                dealt += taken
    return dealt, copied
