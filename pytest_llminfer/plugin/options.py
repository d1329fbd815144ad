"""Every setting of a session, resolved once into plain data that remembers where each value came from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_llminfer.baselines.settings import BaselineSettings
from pytest_llminfer.families.accuracy.settings import ANSWERS_FILE, AccuracySettings
from pytest_llminfer.families.divergence.settings import DivergenceSettings
from pytest_llminfer.families.execution_modes.settings import ExecutionModesSettings
from pytest_llminfer.families.layout.settings import CheckpointSettings
from pytest_llminfer.plugin import option_values as values
from pytest_llminfer.plugin.command_line import OPTIONS, SPOKEN, Option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MatrixSettings:
    """Which cells are tested: the product of these lists.

    Attributes:
        engine: Engines with their environments, at least one.
        model: What is served, at least one.
        weights: ``real``, ``dummy`` or both.
        dtype: Words of ``spec.DTYPES``, at least one.
        quantization: Words of ``spec.QUANTIZATIONS``, at least one.
        kv_dtype: Words of ``spec.KV_DTYPES``, at least one.
        tp: Tensor-parallel sizes from 1 up; empty where none was given.
        pp: Pipeline-parallel sizes from 1 up; empty where none was given.
        dp: Numbers of replicas from 1 up; empty where none was given.
        replication: ``workers``, ``native`` or both.
        gpus: How many accelerators the parallel cells take together; None where the option was not given.
        serve: Whether each engine is queried through its own server.
    """

    engine: tuple[str, ...]
    model: tuple[str, ...]
    weights: tuple[str, ...]
    dtype: tuple[str, ...]
    quantization: tuple[str, ...]
    kv_dtype: tuple[str, ...]
    tp: tuple[int, ...]
    pp: tuple[int, ...]
    dp: tuple[int, ...]
    replication: tuple[str, ...]
    gpus: int | None
    serve: bool


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What holds for every cell and family.

    Attributes:
        engine_args: Further arguments of every engine, by the engine's own names; empty for none.
        timeout: Seconds of silence after which an engine counts as hung.
        strict: Whether a missing baseline or an inconclusive verdict fails.
        model_names: Model to how baselines call it, for each that was given a name.
        sources: Option name with underscores to where its value came from: ``command line``, ``ini`` or ``default``.
    """

    engine_args: Mapping[str, Any]
    timeout: float
    strict: bool
    model_names: Mapping[str, str]
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Options:
    """Every setting of the session, grouped by who reads it.

    Attributes:
        matrix: Which cells are tested.
        session: What holds for every cell and family.
        baselines: Where expectations lie, and whether they are recorded.
        accuracy: How questions are asked and judged.
        divergence: Limits that replace those of the family.
        execution_modes: Which further execution modes are tested.
        checkpoints: Which checkpoints on disk are judged.
    """

    matrix: MatrixSettings
    session: SessionSettings
    baselines: BaselineSettings
    accuracy: AccuracySettings
    divergence: DivergenceSettings
    execution_modes: ExecutionModesSettings
    checkpoints: CheckpointSettings


class _Reader:
    """Reads options one by one, and notes where each value came from."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._options = {option.name: option for option in OPTIONS}
        self.sources: dict[str, str] = {}
        self._texts = {option.name: self._text(option) for option in OPTIONS if option.metavar and not option.repeatable}

    def _text(self, option: Option) -> str:
        given = self.given(option.name)
        if given is not None:
            self.sources[option.name] = "command line"
            return str(given)
        value = str(self._config.getini(option.ini))
        self.sources[option.name] = "default" if value == option.default else "ini"
        return value

    def given(self, name: str) -> Any:
        """What the command line says, as pytest read it; None where it says nothing."""
        return self._config.getoption(f"llminfer_{name}", None)

    def listed(self, name: str) -> tuple[str, ...]:
        """Every value of an option that may be repeated, each once."""
        return tuple(dict.fromkeys(self.given(name) or self._config.getini(f"llminfer_{name}")))

    def one(self, name: str, convert: Callable[[str], T], *, without: str = "") -> T:
        """What ``convert`` makes of the text, or of ``without`` where the text is empty."""
        return self._read(name, self._texts[name] or without, convert)

    def optional(self, name: str, convert: Callable[[str], T]) -> T | None:
        """The same; None where the text is empty."""
        return self._read(name, self._texts[name], convert) if self._texts[name] else None

    def many(self, name: str, convert: Callable[[str], T]) -> tuple[T, ...]:
        """What ``convert`` makes of every word of a list."""
        return tuple(self._read(name, word, convert) for word in map(str.strip, self._texts[name].split(",")) if word)

    def is_on(self, name: str) -> bool:
        """Whether a flag is set, here or in the ini file."""
        return bool(self.given(name) or self._config.getini(f"llminfer_{name}"))

    def _read(self, name: str, word: str, convert: Callable[[str], T]) -> T:
        """A ValueError becomes a usage error that begins with the option."""
        try:
            return convert(word)
        except ValueError as error:
            raise pytest.UsageError(f"{self._called(name)}: {error}") from None

    def _called(self, name: str) -> str:
        """The option as it was given: a flag, or the name in the ini file."""
        option = self._options[name]
        return option.ini if self.sources[name] == "ini" else self._config.stash.get(SPOKEN, {}).get(option.ini, option.flag)


def resolve(config: pytest.Config) -> Options:
    """The settings of this session.

    Raises:
        pytest.UsageError: a value that cannot be read.
    """
    read = _Reader(config)
    return Options(
        matrix=_matrix(read),
        session=SessionSettings(
            engine_args=read.one("engine_args", values.json_object, without="{}"),
            timeout=read.one("timeout", values.seconds),
            strict=read.is_on("strict"),
            model_names=_model_names(read),
            sources=read.sources,
        ),
        baselines=_baselines(read, config.rootpath),
        accuracy=AccuracySettings(
            dataset=read.one("dataset", str),
            questions=read.optional("gsm8k_questions", values.questions),
            form=read.one("gsm8k_form", values.form),
            concurrency=read.optional("gsm8k_concurrency", values.positive),
            runs=read.one("gsm8k_runs", values.runs),
            margin=read.optional("accuracy_margin", values.points),
            full=read.is_on("full"),
            run_history=read.is_on("run_history"),
            order=read.optional("gsm8k_order", values.positive),
            answers_file=_answers_file(config),
        ),
        divergence=DivergenceSettings(limits=read.one("divergence_limits", values.limits, without="{}")),
        execution_modes=ExecutionModesSettings(kv_variants=read.is_on("kv_variants")),
        checkpoints=CheckpointSettings(paths=read.listed("checkpoint")),
    )


def _answers_file(config: pytest.Config) -> str:
    """Where a verdict says that the answers are: as the folder of the report was named."""
    folder = config.getoption("llminfer_report", None) or config.getini("llminfer_report")
    return f"{folder}/{ANSWERS_FILE}" if folder else ""


def _model_names(read: _Reader) -> dict[str, str]:
    """As many as there are models, or none."""
    models, names = read.many("model", str), read.many("model_name", values.model_name)
    if names and len(names) != len(models):
        raise pytest.UsageError(f"--llminfer-model-name: {len(names)} for {len(models)} of --model; give each of them one")
    if len(set(names)) != len(names):
        raise pytest.UsageError(
            "--llminfer-model-name: two models cannot have one name, or each would be judged by the other's records"
        )
    return dict(zip(models, names, strict=True)) if names else {}


def _baselines(read: _Reader, root: Path) -> BaselineSettings:
    """A folder that is named must be there, unless this session records into it."""
    update, default = read.given("update_baselines") or "", read.sources["baselines"] == "default"
    folder = read.one("baselines", partial(values.folder, root=root, must_exist=not (update or default)))
    return BaselineSettings(directory=folder, update=update)


def _matrix(read: _Reader) -> MatrixSettings:
    return MatrixSettings(
        engine=read.many("engine", values.engine),
        model=read.many("model", str),
        weights=read.many("weights", str),
        dtype=read.many("dtype", str),
        quantization=read.many("quantization", str),
        kv_dtype=read.many("kv_dtype", str),
        tp=read.many("tp", values.positive),
        pp=read.many("pp", values.positive),
        dp=read.many("dp", values.positive),
        replication=read.many("replication", values.replication),
        gpus=_only(read.many("gpus", values.positive)),
        serve=read.is_on("serve"),
    )


def _only(gpus: tuple[int, ...]) -> int | None:
    """The one number, None where none was given."""
    if len(gpus) > 1:
        raise pytest.UsageError("--gpus takes one number, of all GPUs to use; for several sizes say --dp=1,2 or --tp=1,2")
    return gpus[0] if gpus else None
