"""What is told of a record that is missing, not comparable, of something else, or no record at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llminfer.baselines.conditions import IDENTITY
from pytest_llminfer.baselines.document import WAY_OUT
from pytest_llminfer.baselines.entries import Entry
from pytest_llminfer.errors import BaselineError
from pytest_llminfer.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llminfer.baselines.record import BaselineKey, Difference, Record
    from pytest_llminfer.spec import EngineSpec

T = TypeVar("T")


def dtype_options(asked: BaselineKey, missing: BaselineKey) -> list[str]:
    """What must be said of dtypes to record a reference that was recorded at others."""
    was, wanted = Entry.parse(asked.entry), Entry.parse(missing.entry)
    dtype = [f"--dtype={wanted.dtype}"] * (was.dtype != wanted.dtype)
    return dtype + [f"--kv-dtype={wanted.kv_dtype}"] * (was.kv_dtype != wanted.kv_dtype)


def parallelism_options(spec: EngineSpec) -> list[str]:
    """What makes a cell one that is judged by the record of the plain one."""
    counts = {"tp": spec.tp, "pp": spec.pp, "dp": spec.dp}
    return ["--serve"] * spec.serve + [f"--{name}={count}" for name, count in counts.items() if count > 1]


def unfair(key: BaselineKey, record: Record, different: list[Difference]) -> Verdict:
    """The verdict that a comparison with this record is not fair."""
    advice = "restore the condition named above, or record a new baseline with --update-baselines"
    if of_something_else(different):
        advice = "give this model a name of its own (--llminfer-model-name), or replace the record: --update-baselines=replace"
    return Verdict(
        outcome=Outcome.INVALID,
        claim=f"this run may be compared with the baseline {key}",
        key="not comparable",
        measurements=(),
        threshold="every recorded condition is equal",
        threshold_source=f"the record of {record.provenance.get('date', 'unknown date')}",
        smallest_detectable="exact",
        advice=advice,
        details=tuple(str(difference) for difference in different),
    )


def of_something_else(different: list[Difference]) -> list[Difference]:
    """The differences that make a record one of something else: other weights, or another served model."""
    return [difference for difference in different if difference.field in IDENTITY]


def refuse_replacing(key: BaselineKey, different: list[Difference]) -> None:
    """A record of something else is not replaced unless that is asked for.

    Raises:
        BaselineError: it is of other weights, or of another served model.
    """
    if other := of_something_else(different):
        raise BaselineError(
            f"the baseline {key} is of something else ({'; '.join(map(str, other))}) and stays: give this model a name of "
            "its own with --llminfer-model-name, or replace the record with --update-baselines=replace"
        )


def read_as(read: Callable[[Mapping[str, Any]], T], key: BaselineKey, expected: Mapping[str, Any]) -> T:
    """What a family makes of what is expected.

    Raises:
        BaselineError: a value of it is missing, or of another shape than the family writes; the message names file and entry.
    """
    try:
        return read(expected)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise BaselineError(
            f"baseline file {key.path}, entry {key.entry!r}: 'expected' is not what its family records ({what}); {WAY_OUT}"
        ) from error
