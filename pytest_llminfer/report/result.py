"""What a session found, as plain data: the one source of the terminal's tables, of JUnit properties and of ``results.json``.

Every class has ``to_dict`` (plain data that JSON can hold) and ``from_dict``, its inverse. ``schema/results.schema.json`` describes
the whole; docs/results.md explains it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.verdict import Verdict, from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 2
"""The version of the format. It grows with every change that a reader of an older one would not understand."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Load:
    """One load of an engine; every replica has its own.

    Attributes:
        phases: Phase to seconds, as the engine names its phases ("import", "load").
        afresh: Whether the cell had been loaded before.
    """

    phases: Mapping[str, float]
    afresh: bool = False


@dataclass(frozen=True, slots=True)
class CellResult:
    """One cell of the session. The fields from ``versions`` to ``kv_dtype`` are what its engine reported, empty where it was never
    loaded.

    Attributes:
        id: The cell's test id.
        spec: The fields of ``EngineSpec``; None for a checkpoint on disk, which no engine serves.
        versions: Name to version, of the engine, its framework and the driver.
        device: ``cpu``, ``cuda``, ``gpu`` or ``remote``.
        device_name: The exact name of the processor or accelerator.
        device_count: How many devices one replica took; 0 where it was never loaded, or runs elsewhere.
        dtype: What it computed in, as the engine resolved it.
        kv_dtype: What it kept keys and values in, as the engine resolved it.
        loads: Every load of its engine, oldest first.
    """

    id: str
    spec: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    device_name: str = ""
    device_count: int = 0
    dtype: str = ""
    kv_dtype: str = ""
    loads: tuple[Load, ...] = ()


@dataclass(frozen=True, slots=True)
class TestResult:
    """One test that belongs to a cell or has given a verdict.

    Attributes:
        node_id: As pytest has it.
        family: What it is evidence of, from the name of its file.
        cell: Id of its cell; empty without one.
        outcome: "pass", "skip", "inconclusive", "invalid", "error" or "fail".
        failed: Whether pytest counts it as failed, as it does an inconclusive one with ``--llminfer-strict``.
        seconds: "setup", "call" and "teardown" to how long each took, of the phases that were reached.
        verdicts: Oldest first; empty where the test gave none.
        reason: Why it was skipped, or what failed where no verdict says; otherwise empty.
        baselines_used: Keys of the records that it was judged by, ``hardware/model/family/entry``.
        baselines_missing: Keys of the records that it needed and that did not exist.
        baselines_recorded: Keys of the records that it made.
    """

    __test__: ClassVar[bool] = False

    node_id: str
    family: str
    cell: str
    outcome: str
    failed: bool
    seconds: Mapping[str, float]
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""
    baselines_used: tuple[str, ...] = ()
    baselines_missing: tuple[str, ...] = ()
    baselines_recorded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OptionValue:
    """One option of this plugin, and where its value came from.

    Attributes:
        name: As in the ini file, without ``llminfer_``.
        value: Its text, whether it is on, or several texts for an option that may be repeated.
        source: "command line", "ini" or "default".
    """

    name: str
    value: str | bool | tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class SessionResult:
    """One run of pytest.

    Attributes:
        started: When it began, UTC, ISO 8601 with a Z.
        ended: When it ended, likewise.
        exit_status: pytest's exit status.
        pytest: Version of pytest.
        llminfer: Version of this package.
        python: Version of the interpreter that ran pytest.
        command: The command line without secrets and without paths outside the project.
        hardware: The fields of ``Hardware`` and its ``key``.
        options: The options of this plugin.
        cells: In the order of the session.
        tests: In the order of time.
        sections: Family ("accuracy", "parallelism", "memory") to the rows of its further table; families without rows are left out.
        messages: Lines that the session printed at its end, on baselines among others.
        schema: Version of the format, ``SCHEMA``.
    """

    started: str
    ended: str
    exit_status: int
    pytest: str
    llminfer: str
    python: str
    command: str
    hardware: Mapping[str, Any]
    options: tuple[OptionValue, ...] = ()
    cells: tuple[CellResult, ...] = ()
    tests: tuple[TestResult, ...] = ()
    sections: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        return {"schema": self.schema, **_plain(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionResult:
        """The result whose :meth:`to_dict` is ``data``, or was in an older version of the format.

        Raises:
            BadInputError: it is no such data, or a newer version wrote it.
        """
        schema = data.get("schema")
        if type(schema) is not int or schema < 1:
            raise BadInputError(f"no result of a session: its 'schema' is {schema!r}")
        if schema > SCHEMA:
            raise BadInputError(f"a result of a newer version (schema {schema}): upgrade pytest-llminfer")
        try:
            return _read(
                cls,
                {**data, "schema": SCHEMA},
                options=tuple(_option(option) for option in data["options"]),
                cells=tuple(_cell(cell) for cell in data["cells"]),
                tests=tuple(_test(test) for test in data["tests"]),
                sections={name: tuple(map(_row, rows)) for name, rows in data["sections"].items()},
                messages=tuple(data["messages"]),
            )
        except KeyError as error:
            raise BadInputError(f"no result of a session: the field {error} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise BadInputError(f"no result of a session: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Verdict):
        return value.to_dict()
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if hasattr(value, "items"):
        return {str(name): _plain(each) for name, each in value.items()}
    return to_json(value)


def _read(cls: type[T], data: Mapping[str, Any], **given: Any) -> T:
    """What ``data`` holds of the fields of ``cls``, those in ``given`` as they are there; unknown fields are left out."""
    names = [each.name for each in fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: given[name] if name in given else data[name] for name in names})


def _row(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: from_json(value) for name, value in data.items()}


def _option(data: Mapping[str, Any]) -> OptionValue:
    value = data["value"]
    return _read(OptionValue, data, value=tuple(value) if isinstance(value, list) else value)


def _cell(data: Mapping[str, Any]) -> CellResult:
    return _read(CellResult, data, loads=tuple(_read(Load, load) for load in data["loads"]))


def _test(data: Mapping[str, Any]) -> TestResult:
    keys = {name: tuple(data[name]) for name in ("baselines_used", "baselines_missing", "baselines_recorded")}
    return _read(TestResult, data, verdicts=tuple(map(Verdict.from_dict, data["verdicts"])), **keys)
