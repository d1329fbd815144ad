"""How a found layout differs from an expected one: a line a difference, the same difference in several layers as one."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from pytest_llminfer.predict.layout import LINEARS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_llminfer.observations.layout import Parameter
    from pytest_llminfer.predict.layout import StoredWeight

COMPARED = ("dtype", "shape", "stored_shape", "stored_bytes", "state_bytes", "packing", "block_size", "double_quantized")
"""What must be equal of a tensor, apart from its name."""

REORDERED = {"onednn", "sgl", "zentorch"}
"""Packings that only reorder the same values, which makes no difference here."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def bytes_by_dtype(parameters: Iterable[Parameter]) -> dict[str, int]:
    """Bytes by the dtype of the tensors that hold them; state counts by its own where the engine reports it."""
    histogram = Counter[str]()
    for parameter in parameters:
        told = sum(taken for _, taken in parameter.state)
        histogram[parameter.dtype] += parameter.stored_bytes - told
        for dtype, taken in parameter.state:
            histogram[dtype] += taken
    return dict(histogram)


def ignored_lines(parameters: Sequence[Parameter], weights: Sequence[StoredWeight], asked: str) -> list[str]:
    """The linears of an unquantized cell that are plain, where the engine says that it was asked for a quantization."""
    linears = {weight.parameter.name: weight.parameter.dtype for weight in weights if weight.role in LINEARS}
    return grouped(
        (parameter.name, f"left in {parameter.dtype}, although the engine was asked for {asked}: it does nothing here")
        for parameter in parameters
        if linears.get(parameter.name) == parameter.dtype and not parameter.state_bytes
    )


def compared_fields(parameter: Parameter) -> dict[str, Any]:
    """The fields that must be equal, by name."""
    fields = {name: getattr(parameter, name) for name in COMPARED}
    return fields | ({"packing": ""} if parameter.packing in REORDERED else {})


def layout_differences(
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
    expected = {weight.parameter.name: compared_fields(weight.parameter) for weight in weights if weight.parameter.name not in said}
    states = {weight.parameter.name: weight.parameter.state for weight in weights}
    others = [parameter for parameter in parameters if parameter.name not in said]
    return [
        *grouped(
            (
                f"{module}.weight",
                f"left in {dtype} instead of {quantization} ({', '.join(name.removeprefix(f'{module}.') for name in names)})",
            )
            for module, names in left.items()
        ),
        *differences(others, expected),
        *grouped(
            (parameter.name, f"state in {_text(parameter.state)} instead of {_text(states[parameter.name])}")
            for parameter in others
            if parameter.state
            and sum(taken for _, taken in parameter.state) == sum(taken for _, taken in states.get(parameter.name, ()))
            and parameter.state != states.get(parameter.name)
        ),
    ]


def differences(parameters: Sequence[Parameter], expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Missing, repeated, extra and different tensors; the same difference in several layers is one line."""
    found = {parameter.name: compared_fields(parameter) for parameter in parameters}
    names = Counter(parameter.name for parameter in parameters)
    reasons = [(name, "missing") for name in expected if name not in found]
    reasons += [(name, f"reported {count} times") for name, count in names.items() if count > 1]
    for name, fields in found.items():
        if name not in expected:
            reasons.append((name, f"extra: {fields['dtype']} {list(fields['shape'])}, {fields['stored_bytes']:,} bytes"))
        elif wrong := [key for key in COMPARED if fields[key] != expected[name][key]]:
            changes = [f"{key} {_text(fields[key])} instead of {_text(expected[name][key])}" for key in wrong]
            reasons.append((name, ", ".join(changes)))
    return grouped(reasons)


def grouped(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """One line for what holds of a parameter in several layers."""
    layers: dict[tuple[str, str], list[str]] = {}
    for name, reason in reasons:
        layers.setdefault((layer_pattern(name)[0], reason), []).append(name)
    return [_line(members, reason) for (_, reason), members in layers.items()]


def _line(members: list[str], reason: str) -> str:
    others = f" (and the same in {len(members) - 1} other layers)" if len(members) > 1 else ""
    return f"{members[0]}{others}: {reason}"


def tie_differences(tied: Iterable[Sequence[str]], pairs: Iterable[Sequence[str]]) -> list[str]:
    """The pairs of names that are one tensor and should not be, and the other way round."""
    found, expected = {tuple(sorted(pair)) for pair in tied}, {tuple(sorted(pair)) for pair in pairs}
    lines = [f"{' and '.join(pair)} should be one tensor and are not" for pair in sorted(expected - found)]
    return lines + [f"{' and '.join(pair)} are one tensor and should not be" for pair in sorted(found - expected)]


def device_differences(parameters: Sequence[Parameter]) -> list[str]:
    """Weights that were left behind: on the meta device, or offloaded to another kind of device than the rest."""
    first: dict[str, str] = {}
    for parameter in parameters:
        first.setdefault(parameter.device.partition(":")[0], parameter.name)
    if set(first) <= {"cpu"} or ("meta" not in first and len(first) == 1):
        return []
    places = ", ".join(f"{device} (first {name})" for device, name in first.items())
    return [f"not all parameters are on one kind of device: {places}"]


def layer_pattern(name: str) -> tuple[str, int | None]:
    """A name with * for its layer, and the layer."""
    number = _NUMBER.search(name)
    return (f"{name[: number.start()]}*{name[number.end() :]}", int(number[0])) if number else (name, None)


def sort_key(name: str) -> tuple[str, int]:
    """Orders names by pattern, then by layer."""
    pattern, layer = layer_pattern(name)
    return pattern, -1 if layer is None else layer


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value in (None, "") else str(value)
