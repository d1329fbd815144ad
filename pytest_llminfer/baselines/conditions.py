"""What must be equal for a record to be compared with a cell, beside what its family says: everything that decides an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pytest_llminfer.baselines.provenance import is_secret
from pytest_llminfer.baselines.record import differing
from pytest_llminfer.engines.profiles import profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.baselines.record import Difference
    from pytest_llminfer.engines.engine import Engine

DTYPES = ("dtype", "kv_dtype")
MAYBE_UNKNOWN = ("engine_args", "revision", "served_model")
"""Conditions that records of schema 1 and references do not hold: where one is missing it is unknown, and not compared."""
WEIGHTS = "model_sha256"
IDENTITY = (WEIGHTS, "served_model")
"""Conditions that say what was recorded, and not how."""
Arguments = Literal["all", "answers", "none"]


def of_engine(engine: Engine, *, own: bool, arguments: Arguments) -> dict[str, Any]:
    """What was served, and how: dtypes as they came out, the model's fingerprint and revision; of the cell itself more.

    Args:
        engine: The cell's.
        own: Whether the record is this cell's, and not that of a reference: then the engine's arguments count too, less those that
            its profile calls operational, and the name by which a server knows the model.
        arguments: Which of them decide what is recorded; "answers" leaves out those that say how much of a device the engine takes.
    """
    info, model = engine.info, engine.model
    found: dict[str, Any] = {"dtype": info.dtype, "kv_dtype": info.kv_dtype, WEIGHTS: model.sha256}
    if model.revision:
        found["revision"] = model.revision
    if own and arguments != "none":
        found["engine_args"] = _without_secrets(_deciding(engine, all_of_them=arguments == "all"))
    if own and info.served_model:
        found["served_model"] = info.served_model
    return found


def differences(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[Difference]:
    """The conditions in which a record and a cell differ.

    Left out is what one of them has nothing to say of: engine arguments that a record does not know, or that are of the engine that
    is its reference. A revision explains why weights differ, and is no difference where they are the same.
    """
    unknown = {name for name in MAYBE_UNKNOWN if name not in recorded or name not in current}
    if recorded.get(WEIGHTS) == current.get(WEIGHTS):
        unknown.add("revision")
    known = [{name: value for name, value in side.items() if name not in unknown} for side in (recorded, current)]
    return differing(*known)


def same_dtypes(recorded: Mapping[str, Any], engine: Engine) -> bool:
    """Whether a record was made with the dtypes that this engine runs with."""
    return all(recorded.get(name) == getattr(engine.info, name) for name in DTYPES)


def _deciding(engine: Engine, *, all_of_them: bool) -> dict[str, Any]:
    engine_profile = profile(engine.spec.engine)
    left_out = engine_profile.operational_args | (frozenset() if all_of_them else engine_profile.capacity_args)
    return {name: value for name, value in engine.engine_args.items() if name not in left_out}


def _without_secrets(value: Any) -> Any:
    """``value`` with ``***`` in the place of each text whose name says that it is secret: conditions are committed."""
    if isinstance(value, dict):
        return {
            name: "***" if is_secret(str(name)) and isinstance(item, str) else _without_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    return value
