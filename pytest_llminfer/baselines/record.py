"""What a baseline is: its key, what it expects, and under which conditions that holds. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_llminfer.errors import BaselineError
from pytest_llminfer.hardware import slug

if TYPE_CHECKING:
    from collections.abc import Iterator

ABSENT = "(absent)"
"""Stands for the value of a field that one side does not have."""


@dataclass(frozen=True, slots=True, order=True)
class BaselineKey:
    """Where a record belongs: ``<hardware>/<model>/<family>.json``, and the entry in that file (see ``entries``).

    Attributes:
        hardware: ``Hardware.key``, or ``any`` where the expectation does not depend on it.
        model: What was served; only the last component of an absolute path, since the rest differs between machines. Two models
            with one slug share a file: the model's hash among the conditions distinguishes them.
        family: The family that recorded it, with what it splits its records by (``throughput_decode``).
        entry: The cell, as :func:`entry_name` writes it, with the words of its parallelism where the expectation depends on it.
    """

    hardware: str
    model: str
    family: str
    entry: str

    def __str__(self) -> str:
        return f"{self.path.with_suffix('')}/{self.entry}"

    @property
    def path(self) -> PurePosixPath:
        """The file, relative to the baselines directory.

        Raises:
            BaselineError: a part without a letter or digit to name a file after.
        """
        model = PurePosixPath(self.model)
        names = {
            "hardware": slug(self.hardware),
            "model": slug(model.name if model.is_absolute() else self.model),
            "family": slug(self.family),
        }
        for part, name in names.items():
            if not name:
                message = f"{part} {getattr(self, part)!r} has no letter or digit to name a baseline file after"
                raise BaselineError(message)
        return PurePosixPath(names["hardware"], names["model"], f"{names['family']}.json")


@dataclass(frozen=True, slots=True)
class Record:
    """One recorded expectation, as plain JSON values (tuples become lists), copied from what it is given.

    Attributes:
        expected: What a run measured.
        conditions: What must be equal for a comparison to be fair: hashes of the prompt, the items and the model, the sampling, the
            extractor.
        provenance: Where it came from: date, versions, commit, command; never compared.

    Raises:
        BaselineError: a value that JSON cannot hold, by its place ("expected.tokens[3]").
    """

    expected: dict[str, Any]
    conditions: dict[str, Any]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        for name in ("expected", "conditions", "provenance"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                message = f"{name} of a baseline record must be a mapping, not {type(value).__name__}"
                raise BaselineError(message)
            object.__setattr__(self, name, plain(value, name))


class Difference(NamedTuple):
    """One condition that is not the same.

    Attributes:
        field: Its dotted name.
        recorded: Its value in the record; ``ABSENT`` where the record has none.
        current: Its value in this run; ``ABSENT`` where this run has none.
    """

    field: str
    recorded: Any
    current: Any

    def __str__(self) -> str:
        return f"{self.field}: recorded {self.recorded!r}, now {self.current!r}"


def differing(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[Difference]:
    """Every condition in which the two differ, by name; nested mappings are compared field by field.

    A field that one side lacks differs, whatever its value. Tuples equal lists, as they do in a file.

    Raises:
        BaselineError: a value that JSON cannot hold.
    """
    return list(_differing(plain(recorded, "recorded"), plain(current, "current"), ""))


def _differing(recorded: dict[str, Any], current: dict[str, Any], prefix: str) -> Iterator[Difference]:
    for name in sorted(recorded.keys() | current.keys()):
        left, right = recorded.get(name, ABSENT), current.get(name, ABSENT)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differing(left, right, f"{prefix}{name}.")
        elif left != right or (name in recorded) != (name in current):
            yield Difference(f"{prefix}{name}", left, right)


def plain(value: Any, place: str) -> Any:
    """A copy of ``value`` as JSON reads it back: subclasses of str, int and float become these, tuples become lists.

    Raises:
        BaselineError: what JSON cannot hold (NaN, infinity, another type), by its ``place``.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            message = f"{place} of a baseline record is {value}; only finite numbers can be recorded"
            raise BaselineError(message)
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                message = f"{place} of a baseline record has the key {name!r}; only text can be a key"
                raise BaselineError(message)
        return {str(name): plain(item, f"{place}.{name}") for name, item in value.items()}
    message = f"{place} of a baseline record is a {type(value).__name__}; record plain values (int, float, str, list, dict)"
    raise BaselineError(message)
