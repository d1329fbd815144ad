"""Parameter layouts: every tensor of a loaded model against what its configuration and quantization imply, or a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.families.layout.differences import (
    COMPARED,
    bytes_by_dtype,
    compared_fields,
    device_differences,
    differences,
    ignored_lines,
    layer_pattern,
    layout_differences,
    sort_key,
    tie_differences,
)
from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.predict.layout import asked_device, expected_layout, of_weights
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_llminfer.models.shape import ModelShape
    from pytest_llminfer.observations.layout import Parameter
    from pytest_llminfer.predict.rules import EngineRules


def check_layout(  # noqa: PLR0913 - what a cell is, and what was found
    *,
    parameters: Sequence[Parameter],
    shape: ModelShape,
    dtype: str,
    quantization: str,
    tied: Iterable[Sequence[str]],
    double_quantized: bool | None = None,
    engine: EngineRules,
    group_size: int | None = None,
    asked: str = "",
) -> Verdict:
    """Whether every tensor is there, once, with the dtype, shape, packing and bytes that the cell implies, and no other.

    dtype: the model's, resolved (fp32, fp16, bf16 or torch's words). tied: the pairs of names that the engine reports as one
    tensor; a tied output matrix is not a parameter of its own. engine: whose names are meant, or the rules of a kind of files.
    Bytes are exact, quantization state included (``declared_formats``). group_size: that a checkpoint declares. asked: a
    quantization that the engine itself says it was asked for, beside the cell's: linears in the model's dtype then show that it
    does nothing.

    Raises:
        UnsupportedError: a quantization whose storage is not known here.
    """
    parameters = of_weights(parameters)
    weights = expected_layout(
        shape=shape,
        dtype=dtype,
        quantization=quantization,
        double_quantized=double_quantized,
        engine=engine,
        group_size=group_size,
        device=asked_device(parameters, asked),
    )
    lines = [
        *tie_differences(tied, shape.tied_pairs),
        *(ignored_lines(parameters, weights, asked) if asked and quantization == "none" else ()),
        *layout_differences(parameters, weights, torch_dtype(dtype), quantization),
        *device_differences(parameters),
    ]
    elements, stored = shape.parameter_count, sum(parameter.stored_bytes for parameter in parameters)
    cell = f"{torch_dtype(dtype)}, {'unquantized' if quantization == 'none' else quantization}"
    return _verdict(
        claim=f"every parameter is stored as the configuration of a {shape.architecture} model implies ({cell})",
        key=f"{8 * stored / elements:.3f} bits/weight",
        parameters=parameters,
        expected=len(weights),
        lines=lines,
        implied=bytes_by_dtype(weight.parameter for weight in weights),
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
    for parameter in sorted(parameters, key=lambda parameter: sort_key(parameter.name)):
        pattern, layer = layer_pattern(parameter.name)
        stored = {name: list(value) if isinstance(value, tuple) else value for name, value in compared_fields(parameter).items()}
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
    recorded = recorded_fields(expected)
    stored = sum(parameter.stored_bytes for parameter in parameters)
    before = sum(entry["stored_bytes"] for entry in recorded.values())
    return _verdict(
        claim="every parameter is stored as in the baseline",
        key=f"{len(parameters):,} tensors",
        parameters=parameters,
        expected=len(recorded),
        lines=[*differences(parameters, recorded), *device_differences(parameters)],
        extra=(
            Measurement("bytes before", before, "bytes", len(recorded)),
            Measurement("bytes now", stored, "bytes", len(parameters), baseline=before),
        ),
        source="the baseline",
        advice="if the new storage is meant, record a new baseline",
    )


def recorded_fields(expected: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The compared fields of every tensor by name, of what :func:`summarise_layout` gave."""
    return {
        pattern.replace("*", str(layer), 1) if layer is not None else pattern: {
            key: tuple(entry[key]) if isinstance(entry[key], list) else entry[key] for key in COMPARED
        }
        for pattern, entries in expected.items()
        for entry in entries
        for layer in entry.get("layers", (None,))
    }


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
    implied: Mapping[str, int] | None = None,
) -> Verdict:
    if not parameters:
        lines, key = ["nothing was compared: the engine reported no parameters"], "no parameters"
    found = bytes_by_dtype(parameters)
    said = {dtype: f"expected {taken:,}" for dtype, taken in (implied or {}).items()}
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=key,
        measurements=(
            Measurement("tensors", len(parameters), "tensors", len(parameters), f"expected {expected}", expected),
            *(
                Measurement(
                    f"stored in {dtype}",
                    found.get(dtype, 0),
                    "bytes",
                    spread=said.get(dtype, ""),
                    baseline=(implied or {}).get(dtype),
                )
                for dtype in sorted(found | said)
            ),
            *extra,
        ),
        threshold="every tensor equal in " + ", ".join(COMPARED) + ", none missing, none extra",
        threshold_source=source,
        smallest_detectable="exact",
        advice=advice,
        details=first_offenders(lines),
    )
