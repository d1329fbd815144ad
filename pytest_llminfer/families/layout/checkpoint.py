"""A checkpoint on disk: stored as it declares, every tensor where its index says, and every 4-bit weight noted as what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.families.layout.check import check_layout
from pytest_llminfer.families.layout.differences import grouped
from pytest_llminfer.predict.declared_formats import find
from pytest_llminfer.predict.formats import BLOCKWISE, NESTED_BLOCK
from pytest_llminfer.predict.rules import FILES, SAFETENSORS
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.models.shape import ModelShape
    from pytest_llminfer.models.stored import StoredModel


def check_checkpoint(stored: StoredModel, quantization: str | None = None) -> tuple[Verdict, ...]:
    """The layout check, as the format that the checkpoint declares or as ``quantization``; notes and index where it has them.

    Raises:
        UnsupportedError: a quantization whose storage on disk is not known here.
    """
    layout = check_layout(
        parameters=stored.layout.parameters,
        shape=stored.shape,
        dtype=stored.dtype,
        quantization=quantization or stored.quantization,
        double_quantized=stored.double_quantized,
        tied=stored.layout.tied,
        engine=FILES[stored.holder],
        group_size=stored.group_size,
    )
    verdicts = [layout]
    if (quantization or stored.quantization) in BLOCKWISE and stored.holder == SAFETENSORS.name:
        verdicts.append(
            check_notes(
                notes=stored.notes,
                shape=stored.shape,
                dtype=stored.dtype,
                quantization=quantization or stored.quantization,
                double_quantized=bool(stored.double_quantized),
            )
        )
    if stored.index is not None:
        verdicts.append(check_index(indexed=stored.index, stored=stored.files))
    return tuple(verdicts)


def check_notes(
    *, notes: Mapping[str, Mapping[str, Any]], shape: ModelShape, dtype: str, quantization: str, double_quantized: bool
) -> Verdict:
    """Whether bitsandbytes' note of each 4-bit weight says what it should: format, blocks, dtype and shape of what is unpacked.

    The tensors of nf4 and fp4 are alike, and so are those of two shapes of as many elements: only the notes distinguish them.
    notes: by the weight's name. Where the scales are quantized too, their offset is in the note, and must be a number.
    """
    declared = find(quantization, SAFETENSORS)
    constant = {"quant_type": quantization, "blocksize": declared.group, "dtype": dtype}
    nested = {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"} if double_quantized else {}
    linears = [weight for weight in shape.parameters() if weight.role in declared.roles]
    reasons: list[tuple[str, str]] = []
    for weight in linears:
        rows, columns = weight.shape[::-1] if weight.transposed else weight.shape
        note, wanted = notes.get(weight.name), {**constant, "shape": [rows, columns], **nested}
        if note is None:
            reasons.append((weight.name, "no note of how it is unpacked"))
            continue
        wrong = [f"{key} {note.get(key)} instead of {value}" for key, value in wanted.items() if note.get(key) != value]
        if double_quantized and not isinstance(note.get("nested_offset"), float):
            wrong.append(f"nested_offset {note.get('nested_offset')} instead of a number")
        if not double_quantized:
            wrong += [
                f"{key} {value} noted, although the scales are not quantized" for key, value in note.items() if "nested" in key
            ]
        if wrong:
            reasons.append((weight.name, "noted with " + ", ".join(wrong)))
    known = {weight.name for weight in linears}
    reasons += [(name, "a note of no such linear") for name in notes if name not in known]
    lines = grouped(reasons) if linears else ["nothing was compared: the model has no linears"]
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"every {quantization} weight is noted with its format, blocks, dtype and shape",
        key=f"{len(notes):,} notes",
        measurements=(Measurement("notes", len(notes), "tensors", len(notes), f"expected {len(linears)}"),),
        threshold="every note equal in " + ", ".join([*constant, "shape", *nested]),
        threshold_source="the model's configuration",
        smallest_detectable="exact",
        advice="quantize the named weights again: a loader unpacks them by their notes, whatever config.json says",
        details=first_offenders(lines),
    )


def check_index(*, indexed: Mapping[str, str], stored: Mapping[str, str]) -> Verdict:
    """Whether the index of a checkpoint in shards names every tensor, in the file that holds it, and no other.

    indexed, stored: file by the tensor's name, as the index says and as the files' headers do. A loader that follows the index
    leaves out what it does not name.
    """
    lines = [f"{name} lies in {stored[name]} and is not in the index" for name in sorted(stored.keys() - indexed.keys())]
    lines += [f"{name} is in the index and in no file" for name in sorted(indexed.keys() - stored.keys())]
    lines += [
        f"{name} lies in {stored[name]}, the index says {indexed[name]}"
        for name in sorted(stored.keys() & indexed.keys())
        if stored[name] != indexed[name]
    ]
    if not stored:
        lines = ["nothing was compared: no file holds a tensor"]
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="the index names every tensor, in the file that holds it",
        key=f"{len(indexed):,} indexed",
        measurements=(
            Measurement("tensors in the index", len(indexed), "tensors", len(indexed)),
            Measurement("tensors in files", len(stored), "tensors", len(stored), f"{len(set(stored.values()))} files"),
        ),
        threshold="every tensor of the files in the index, and the other way round",
        threshold_source="the headers of the files",
        smallest_detectable="exact",
        advice="write the index again from the headers of the files, or save the checkpoint again",
        details=first_offenders(lines),
    )
