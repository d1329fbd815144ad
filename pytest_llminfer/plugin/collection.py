"""Which tests are collected: those that apply to a cell, by their markers. What does not apply is no test of that cell.

``llminfer_only`` asks something of the cell and its model, ``llminfer_needs`` of what its engine could answer and of the options.
Both are decided before an engine starts, alike in every process; what shows only when one runs is a skip with its reason.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.plugin import checkpoints, hints, matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llminfer.models.model import Model
    from pytest_llminfer.spec import EngineSpec

LEFT_OUT = pytest.StashKey["dict[str, str]"]()
"""By node id, what a test that was not collected needs."""
TOLD = pytest.StashKey[str]()
WHY = "llminfer_left_out"
"""What a process of pytest-xdist says about tests that it did not collect."""
MODELS = pytest.StashKey["dict[tuple[str, str], Model | None]"]()

DERIVED = ("parallel", "over_http", "quantized", "workers", "draws_per_rank")
"""What ``llminfer_only`` may ask of a cell beside its fields."""
OF_MODELS = ("has_tokenizer", "has_chat_template", "has_sliding_window")
"""What it may ask of the cell's model. A model that is not on this machine passes: its files are fetched when a test runs."""
_HINTS = {
    "over_http": "--serve, or --engine=openai@http://host:port/v1",
    "parallel": "--gpus=2, or --tp=2",
    "quantized": "--quantization=int8",
}


def keep_what_applies(report: pytest.CollectReport, config: pytest.Config) -> pytest.CollectReport:
    """What a collector found, less the tests that do not apply to their cells; a marker that cannot be read is its error."""
    left_out = config.stash.setdefault(LEFT_OUT, {})
    kept = []
    for node in report.result or ():
        try:
            needs = next(_needs(node, config), "") if isinstance(node, pytest.Item) else ""
        except ValueError as error:
            return pytest.CollectReport(report.nodeid, "failed", f"{node.nodeid}: {error}", None)
        if needs:
            left_out[node.nodeid] = needs
        else:
            kept.append(node)
    report.result = kept
    return report


def _needs(item: pytest.Item, config: pytest.Config) -> Iterator[str]:
    """What the test needs that its cell, or the session, does not have."""
    if checkpoints.names_none(item):
        yield "--checkpoint=PATH"
    cell = matrix.cell_of(item)
    if cell is None:
        return
    for marker in item.iter_markers("llminfer_only"):
        for name, allowed in marker.kwargs.items():
            values = (allowed,) if isinstance(allowed, (str, int)) else tuple(allowed)
            if _value(name, cell, item) not in (None, *values):
                hint = _HINTS.get(name, "") if True in values else ""
                yield f"{name}={' or '.join(map(str, values))}" + (f" ({hint})" if hint else "")
    for marker in item.iter_markers("llminfer_needs"):
        yield from _capabilities(marker, cell)
        if (option := marker.kwargs.get("option", "")) and not _is_given(option, config):
            yield option


def _is_given(option: str, config: pytest.Config) -> bool:
    name = "llminfer_" + option.removeprefix("--").removeprefix("llminfer-").replace("-", "_")
    try:
        return bool(config.getoption(name, None) or config.getini(name))
    except ValueError:
        raise ValueError(f"llminfer_needs: there is no option {option}") from None


def _capabilities(marker: pytest.Mark, cell: EngineSpec) -> Iterator[str]:
    from pytest_llminfer.engines.capabilities import engines_that_answer, every_capability, possible_capabilities

    possible = possible_capabilities(cell)
    for name in marker.args:
        if possible is not None and name in possible:
            continue
        engines = engines_that_answer(name)
        if name not in (every := every_capability()):
            raise ValueError(f"llminfer_needs: no engine answers {name!r}; valid: {', '.join(sorted(every))}")
        if possible is not None:
            yield f"an engine that answers {name!r}" + (f" ({', '.join(engines)})" if engines else "")


def _value(name: str, cell: EngineSpec, item: pytest.Item) -> Any:
    """A field of the cell, or a fact about its model; None where that shows only when the test runs."""
    if name in OF_MODELS:
        return _fact(name, cell, item)
    if name not in cell.__dataclass_fields__ and name not in DERIVED:
        raise ValueError(
            f"llminfer_only: unknown field {name!r}; valid: {', '.join([*cell.__dataclass_fields__, *DERIVED, *OF_MODELS])}"
        )
    return _draws_per_rank(cell) if name == "draws_per_rank" else getattr(cell, name)


def _draws_per_rank(cell: EngineSpec) -> bool | None:
    from pytest_llminfer.engines.profiles import profile
    from pytest_llminfer.errors import UnsupportedError

    try:
        return profile(cell.engine).draws_per_rank(cell)
    except UnsupportedError:
        # The test that compares says so.
        return None


def _fact(name: str, cell: EngineSpec, item: pytest.Item) -> bool | None:
    from pytest_llminfer.errors import LlminferError
    from pytest_llminfer.models.cut import CacheSizes

    model = _model(cell, item)
    if model is None or (cell.over_http and name == "has_tokenizer"):
        # A server may be asked in messages, which it turns into tokens itself.
        return None
    try:
        if name == "has_sliding_window":
            return any(CacheSizes.from_config(model.config).windows)
        return model.has_tokenizer and (name == "has_tokenizer" or bool(model.chat_template))
    except LlminferError:
        # The test that reads the files reports what is wrong with them.
        return None


def _model(cell: EngineSpec, item: pytest.Item) -> Model | None:
    """The cell's model if it lies here; None where it would be fetched, cannot be read, or comes from a fixture of the project."""
    from pytest_llminfer.errors import LlminferError
    from pytest_llminfer.models.files import is_here
    from pytest_llminfer.models.model import Model

    info = getattr(item, "_fixtureinfo", None)
    if info is not None and len(info.name2fixturedefs.get("llminfer_model", ())) > 1:
        return None
    models = item.config.stash.setdefault(MODELS, {})
    key = (cell.model, cell.weights)
    if key not in models:
        try:
            models[key] = Model(cell.model, weights=cell.weights) if is_here(cell.model) else None
        except LlminferError:
            models[key] = None
    return models[key]


def explained(error: pytest.UsageError, config: pytest.Config) -> pytest.UsageError:
    """Say of a test that is named and does not apply what it needs, in place of pytest's "not found".

    A process of pytest-xdist prints nothing: it hands the words to the one that the user started (:func:`pass_on`).
    """
    lines = [hints.working(_told(str(line), config), config) for line in error.args]
    worker: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if worker is not None and lines != list(error.args):
        worker[WHY] = "\n".join(lines)
    return pytest.UsageError(*lines)


def tell_of_nothing(session: pytest.Session) -> None:
    """Hand on why a process of pytest-xdist collected nothing."""
    worker: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if worker is not None and not session.items:
        worker[WHY] = hints.working(nothing_applies(session.config), session.config)


def pass_on(config: pytest.Config, told: str) -> None:
    """Print what a process of pytest-xdist said about tests that it did not collect; all of them say the same."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if told and reporter is not None and config.stash.get(TOLD, "") != told:
        config.stash[TOLD] = told
        reporter.write_line(told)


def _told(line: str, config: pytest.Config) -> str:
    named = line.partition("\n")[0].removeprefix("not found: ").strip()
    needs = {
        reason: None
        for nodeid, reason in config.stash.get(LEFT_OUT, {}).items()
        if any(named.endswith(tail) for tail in (f"/{nodeid}", f"/{nodeid.partition('[')[0]}"))
    }
    return f"{named} applies to no cell of this session: it needs {'; '.join(needs)}" if needs else line


def nothing_applies(config: pytest.Config) -> str:
    """Why nothing was collected, in a line; empty where there was nothing to collect."""
    tests = {(nodeid.partition("[")[0], reason) for nodeid, reason in config.stash.get(LEFT_OUT, {}).items()}
    counts = Counter(reason for _, reason in tests)
    parts = [f"{count} need{'s' * (count == 1)} {reason}" for reason, count in counts.most_common()]
    return f"llminfer: no test applies to a cell of this session: {', '.join(parts)}" if parts else ""
