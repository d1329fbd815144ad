"""The declared storage of every quantization, read from TOML, and the sizes that its shape rules give.

``declared_formats.toml`` declares that of safetensors files, and explains the fields; an engine's profile names another file
(``rules.Storage.formats``).
"""

from __future__ import annotations

import functools
import math
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.models.shape import ITEM_BYTES
from pytest_llminfer.predict.rules import storage_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_llminfer.predict.rules import EngineRules

ANY_DEVICE = "any"

BYTES = {**ITEM_BYTES, "float8_e4m3fn": 1, "int32": 4, "int64": 8}
"""Of one element of a stored tensor, by dtype in torch's words."""

_FACTOR = re.compile(r"([*/]?)\s*([a-z]+|\d+)\s*")


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One tensor of a stored linear.

    Attributes:
        name: Its suffix after the linear's name (``weight``, ``weight.absmax``).
        dtype: In torch's words, or ``model`` for the model's own.
        shape: One rule per dimension over a linear's sizes, such as ``out*in/group``; empty for a single number.
        packing: What the engine calls the format of this tensor; None where it is the format's.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    packing: str | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """How one holder stores the linears of one quantization; ``declared_formats.toml`` explains each field.

    Attributes:
        name: The quantization, in the words of a cell.
        holder: Name of the engine, or of the kind of file.
        roles: Roles of the weights that are stored so; all others are one tensor of the model's own dtype.
        tensors: The tensors of one linear, the weight first and its state after it.
        packing: What the engine calls the format; empty for nothing.
        group: Weights or inputs that share a scale, -1 for all inputs of a row; None without groups.
        attached: Whether the state hangs on the weight's tensor instead of being tensors of the model.
        double: The tensors of one linear whose absolute maxima are quantized too; empty where the format has no such variant.
        double_quantized: Whether that variant is the usual one; None where it has no meaning.
    """

    name: str
    holder: str
    roles: tuple[str, ...] = ()
    tensors: tuple[TensorRule, ...] = ()
    packing: str = ""
    group: int | None = None
    attached: bool = False
    double: tuple[TensorRule, ...] = ()
    double_quantized: bool | None = None

    def rules(self, *, double_quantized: bool | None) -> tuple[TensorRule, ...]:
        """The tensors of a linear, its scales quantized too or not."""
        return self.double if self.double and double_quantized else self.tensors


def find(quantization: str, engine: EngineRules, device: str = "cpu") -> Format:
    """What is declared of a quantization in an engine's memory on a kind of device, or in a kind of files.

    device: ``cpu`` or ``cuda``, and behind a dash what the engine says it was asked for, where it says that.

    Raises:
        UnsupportedError: nothing is: a visible skip.
    """
    if quantization == "none":
        return Format("none", engine.name)
    kind = device.partition("-")[0]
    devices, declared = (ANY_DEVICE, kind, device), formats(engine)
    if found := [declared[quantization, each] for each in devices if (quantization, each) in declared]:
        return found[-1]
    known = sorted({name for name, place in declared if place in devices})
    raise UnsupportedError(
        f"how {engine.name} stores quantization {quantization!r} on {kind} is not known here",
        f"use one of: {', '.join(['none', *known])}",
    )


def formats(engine: EngineRules) -> Mapping[tuple[str, str], Format]:
    """Everything that is declared of an engine, or of a kind of files: (quantization, device) to its storage."""
    file = storage_of(engine).formats
    return {} if file is None else _read(file, engine.name)


@functools.cache
def _read(file: Path, holder: str) -> Mapping[tuple[str, str], Format]:
    with file.open("rb") as stream:
        read = tomllib.load(stream)
    return {(name, device): _format(name, holder, entry) for name, devices in read.items() for device, entry in devices.items()}


def size(rule: str, sizes: Mapping[str, int]) -> int:
    """The value of a shape rule such as ``out*in/group``: left to right, quotients rounded up.

    Raises:
        BadInputError: a rule that is written in another way, or names a size that is not given.
    """
    found = _FACTOR.findall(rule)
    if "".join(operator + word for operator, word in found) != rule.replace(" ", "") or not found or found[0][0]:
        raise BadInputError(f"{rule!r} is no shape rule as in declared_formats.toml; write sizes with * and / between them")
    value = 1
    for operator, word in found:
        if not word.isdigit() and word not in sizes:
            raise BadInputError(f"the shape rule {rule!r} names {word!r}; declared_formats.toml knows: {', '.join(sizes)}")
        factor = int(word) if word.isdigit() else sizes[word]
        value = math.ceil(value / factor) if operator == "/" else value * factor
    return value


def _format(name: str, holder: str, entry: Mapping[str, Any]) -> Format:
    given = {**entry}
    for key in ("tensors", "double"):
        given[key] = tuple(TensorRule(**{**rule, "shape": tuple(rule["shape"])}) for rule in given.get(key, ()))
    return Format(name, holder, **{**given, "roles": tuple(given["roles"])})
