"""Parameter layouts: every tensor of a loaded model against what its configuration and quantization imply, or a record."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checks.offenders import first_offenders
from pytest_llminfer.checks.storage import LINEARS, expected_layout
from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_llminfer.checks.storage import StoredWeight
    from pytest_llminfer.models.shape import ModelShape
    from pytest_llminfer.observations import Parameter

COMPARED = ("dtype", "shape", "stored_shape", "stored_bytes", "state_bytes", "packing", "block_size", "double_quantized")
"""What must be equal of a tensor, apart from its name."""

REORDERED = {"onednn", "sgl", "zentorch"}
"""Packings that put the same values into another order: of no account here."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def check_layout(  # noqa: PLR0913 - what a cell is, and what was found
    *,
    parameters: Sequence[Parameter],
    shape: ModelShape,
    dtype: str,
    quantization: str,
    tied: Iterable[Sequence[str]],
    double_quantized: bool | None = None,
    engine: str = "transformers",
    group_size: int | None = None,
    asked: str = "",
) -> Verdict:
    """Whether every tensor is there, once, with the dtype, shape, packing and bytes that the cell implies, and no other.

    dtype: the model's, resolved (fp32, fp16, bf16 or torch's words). tied: the pairs of names that the engine reports as one
    tensor; a tied output matrix is not a parameter of its own. engine: whose names are meant, or ``checkpoint`` for files. Bytes
    are exact, quantization state included (``formats.toml``). group_size: that a checkpoint declares. asked: a quantization that
    the engine itself says it was asked for, beside the cell's: linears in the model's dtype then show that it does nothing.

    Raises:
        UnsupportedError: a quantization whose storage is not known here.
    """
    weights = expected_layout(
        shape=shape,
        dtype=dtype,
        quantization=quantization,
        double_quantized=double_quantized,
        engine=engine,
        group_size=group_size,
        device=parameters[0].device.partition(":")[0] if parameters else "cpu",
    )
    lines = [
        *_tie_differences(tied, shape),
        *(_ignored(parameters, weights, asked) if asked and quantization == "none" else ()),
        *_layout_differences(parameters, weights, torch_dtype(dtype), quantization),
        *_device_differences(parameters),
    ]
    elements, stored = shape.parameter_count, sum(parameter.stored_bytes for parameter in parameters)
    cell = f"{torch_dtype(dtype)}, {'unquantized' if quantization == 'none' else quantization}"
    return _verdict(
        claim=f"every parameter is stored as the configuration of a {shape.architecture} model implies ({cell})",
        key=f"{8 * stored / elements:.3f} bits/weight",
        parameters=parameters,
        expected=len(weights),
        lines=lines,
        histogram=_histogram(weight.parameter for weight in weights),
        extra=(Measurement("bits per weight", 8 * stored / elements, "bits", elements),),
        source="the model's configuration and the quantization's storage rule",
        advice="see which role changed: linears in the model's dtype were not quantized, norms or embeddings in another dtype "
        "were converted, an output matrix of its own means that a tie was broken",
    )


def summarise_layout(parameters: Iterable[Parameter]) -> dict[str, Any]:
    """A layout as plain JSON for a baseline: layers that are stored alike share one entry.

    ``{"model.layers.*.mlp.up_proj.weight": [{"layers": [0, 1], "dtype": …, "stored_bytes": …}]}``; names without a
    layer number have an entry without ``layers``. Nothing is lost: :func:`check_layout_unchanged` compares every tensor.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for parameter in sorted(parameters, key=lambda parameter: _sort_key(parameter.name)):
        pattern, layer = _pattern(parameter.name)
        stored = {name: list(value) if isinstance(value, tuple) else value for name, value in _fields(parameter).items()}
        entries = groups.setdefault(pattern, [])
        same = next((entry for entry in entries if {key: entry[key] for key in COMPARED} == stored), None)
        if same is None:
            same = stored if layer is None else {"layers": [], **stored}
            entries.append(same)
        if layer is not None:
            same["layers"].append(layer)
    return groups


def check_layout_unchanged(*, parameters: Sequence[Parameter], expected: Mapping[str, Any]) -> Verdict:
    """Whether every tensor is stored as in a recorded layout, and no other is there.

    expected: what :func:`summarise_layout` gave. For models whose configuration is not known here, and for engines that
    fuse or rename parameters.
    """
    recorded: dict[str, dict[str, Any]] = {
        pattern.replace("*", str(layer), 1) if layer is not None else pattern: {
            key: tuple(entry[key]) if isinstance(entry[key], list) else entry[key] for key in COMPARED
        }
        for pattern, entries in expected.items()
        for entry in entries
        for layer in entry.get("layers", (None,))
    }
    stored = sum(parameter.stored_bytes for parameter in parameters)
    return _verdict(
        claim="every parameter is stored as in the baseline",
        key=f"{len(parameters):,} tensors",
        parameters=parameters,
        expected=len(recorded),
        lines=[*_differences(parameters, recorded), *_device_differences(parameters)],
        extra=(
            Measurement("bytes before", sum(entry["stored_bytes"] for entry in recorded.values()), "bytes", len(recorded)),
            Measurement("bytes now", stored, "bytes", len(parameters)),
        ),
        source="the baseline",
        advice="if the new storage is meant, record a new baseline",
    )


def _verdict(  # noqa: PLR0913 - the parts that two checks word differently
    *,
    claim: str,
    key: str,
    parameters: Sequence[Parameter],
    expected: int,
    lines: list[str],
    extra: tuple[Measurement, ...],
    source: str,
    advice: str,
    histogram: Mapping[str, int] | None = None,
) -> Verdict:
    if not parameters:
        lines, key = ["nothing was compared: the engine reported no parameters"], "no parameters"
    found = _histogram(parameters)
    implied = {dtype: f"expected {taken:,}" for dtype, taken in (histogram or {}).items()}
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=key,
        measurements=(
            Measurement("tensors", len(parameters), "tensors", len(parameters), f"expected {expected}"),
            *(
                Measurement(f"stored in {dtype}", found.get(dtype, 0), "bytes", spread=implied.get(dtype, ""))
                for dtype in sorted(found | implied)
            ),
            *extra,
        ),
        threshold="every tensor equal in " + ", ".join(COMPARED) + ", none missing, none extra",
        threshold_source=source,
        smallest_detectable="exact",
        advice=advice,
        details=first_offenders(lines),
    )


def _histogram(parameters: Iterable[Parameter]) -> dict[str, int]:
    """Bytes by the dtype of the tensors that hold them; state counts by its own where the engine tells it."""
    histogram = Counter[str]()
    for parameter in parameters:
        told = sum(taken for _, taken in parameter.state)
        histogram[parameter.dtype] += parameter.stored_bytes - told
        for dtype, taken in parameter.state:
            histogram[dtype] += taken
    return dict(histogram)


def _ignored(parameters: Sequence[Parameter], weights: Sequence[StoredWeight], asked: str) -> list[str]:
    """The linears of an unquantized cell that are plain, where the engine says that it was asked for a quantization."""
    linears = {weight.parameter.name: weight.parameter.dtype for weight in weights if weight.role in LINEARS}
    return _grouped(
        (parameter.name, f"left in {parameter.dtype}, although the engine was asked for {asked}: it does nothing here")
        for parameter in parameters
        if linears.get(parameter.name) == parameter.dtype and not parameter.state_bytes
    )


def _fields(parameter: Parameter) -> dict[str, Any]:
    fields = {name: getattr(parameter, name) for name in COMPARED}
    return fields | ({"packing": ""} if parameter.packing in REORDERED else {})


def _layout_differences(
    parameters: Sequence[Parameter], weights: Sequence[StoredWeight], dtype: str, quantization: str
) -> list[str]:
    """What differs from the implied layout; a packed linear that was left in the model's dtype is one line of its own."""
    found = {parameter.name: parameter for parameter in parameters}
    modules: dict[str, list[str]] = {}
    for weight in weights:
        if weight.module and not weight.parameter.state:
            modules.setdefault(weight.module, []).append(weight.parameter.name)
    meant = {weight.parameter.name for weight in weights if weight.parameter.dtype == dtype}
    left = {
        module: names
        for module, names in modules.items()
        if f"{module}.weight" in found and f"{module}.weight" not in meant and found[f"{module}.weight"].dtype == dtype
    }
    said = {name for module, names in left.items() for name in (f"{module}.weight", *names)}
    expected = {weight.parameter.name: _fields(weight.parameter) for weight in weights if weight.parameter.name not in said}
    states = {weight.parameter.name: weight.parameter.state for weight in weights}
    others = [parameter for parameter in parameters if parameter.name not in said]
    return [
        *_grouped(
            (
                f"{module}.weight",
                f"left in {dtype} instead of {quantization} ({', '.join(name.removeprefix(f'{module}.') for name in names)})",
            )
            for module, names in left.items()
        ),
        *_differences(others, expected),
        *_grouped(
            (parameter.name, f"state in {_text(parameter.state)} instead of {_text(states[parameter.name])}")
            for parameter in others
            if parameter.state
            and sum(taken for _, taken in parameter.state) == sum(taken for _, taken in states.get(parameter.name, ()))
            and parameter.state != states.get(parameter.name)
        ),
    ]


def _differences(parameters: Sequence[Parameter], expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Missing, repeated, extra and different tensors; the same difference in several layers is one line."""
    found = {parameter.name: _fields(parameter) for parameter in parameters}
    names = Counter(parameter.name for parameter in parameters)
    reasons = [(name, "missing") for name in expected if name not in found]
    reasons += [(name, f"reported {count} times") for name, count in names.items() if count > 1]
    for name, fields in found.items():
        if name not in expected:
            reasons.append((name, f"extra: {fields['dtype']} {list(fields['shape'])}, {fields['stored_bytes']:,} bytes"))
        elif wrong := [key for key in COMPARED if fields[key] != expected[name][key]]:
            changes = [f"{key} {_text(fields[key])} instead of {_text(expected[name][key])}" for key in wrong]
            reasons.append((name, ", ".join(changes)))
    return _grouped(reasons)


def _grouped(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """One line for what holds of a parameter in several layers."""
    layers: dict[tuple[str, str], list[str]] = {}
    for name, reason in reasons:
        layers.setdefault((_pattern(name)[0], reason), []).append(name)
    return [_line(members, reason) for (_, reason), members in layers.items()]


def _line(members: list[str], reason: str) -> str:
    others = f" (and the same in {len(members) - 1} other layers)" if len(members) > 1 else ""
    return f"{members[0]}{others}: {reason}"


def _tie_differences(tied: Iterable[Sequence[str]], shape: ModelShape) -> list[str]:
    found, expected = {tuple(sorted(pair)) for pair in tied}, {tuple(sorted(pair)) for pair in shape.tied_pairs}
    lines = [f"{' and '.join(pair)} should be one tensor and are not" for pair in sorted(expected - found)]
    return lines + [f"{' and '.join(pair)} are one tensor and should not be" for pair in sorted(found - expected)]


def _device_differences(parameters: Sequence[Parameter]) -> list[str]:
    """Weights that were left behind: on the meta device, or offloaded to another kind of device than the rest."""
    first: dict[str, str] = {}
    for parameter in parameters:
        first.setdefault(parameter.device.partition(":")[0], parameter.name)
    if set(first) <= {"cpu"} or ("meta" not in first and len(first) == 1):
        return []
    places = ", ".join(f"{device} (first {name})" for device, name in first.items())
    return [f"not all parameters are on one kind of device: {places}"]


def _pattern(name: str) -> tuple[str, int | None]:
    number = _NUMBER.search(name)
    return (f"{name[: number.start()]}*{name[number.end() :]}", int(number[0])) if number else (name, None)


def _sort_key(name: str) -> tuple[str, int]:
    pattern, layer = _pattern(name)
    return pattern, -1 if layer is None else layer


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value in (None, "") else str(value)
