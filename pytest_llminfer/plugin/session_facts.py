"""What a report says of the session itself: when, by which command and options, and on what."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer import __version__
from pytest_llminfer.baselines.provenance import command_line, without_secrets
from pytest_llminfer.hardware import Hardware, detect
from pytest_llminfer.plugin.command_line import OPTIONS
from pytest_llminfer.report.result import OptionValue

if TYPE_CHECKING:
    from collections.abc import Iterator

HARDWARE = pytest.StashKey[Hardware]()


def hardware(config: pytest.Config) -> Hardware:
    """This machine; nvidia-smi is asked once a session."""
    if HARDWARE not in config.stash:
        config.stash[HARDWARE] = detect()
    return config.stash[HARDWARE]


def report_folder(config: pytest.Config) -> Path | None:
    """Where ``results.json`` is to be written: relative to where pytest was started, or to the root where the ini file says it."""
    if given := config.getoption("llminfer_report", None):
        return config.invocation_params.dir / str(given)
    written = str(config.getini("llminfer_report"))
    return config.rootpath / written if written else None


def facts(config: pytest.Config, *, started: float, exit_status: int) -> dict[str, Any]:
    """The fields of ``SessionResult`` that are about no test. started: seconds since the epoch."""
    machine = hardware(config)
    return {
        "started": utc(datetime.fromtimestamp(started, UTC)),
        "ended": utc(datetime.now(UTC)),
        "exit_status": exit_status,
        "pytest": pytest.__version__,
        "llminfer": __version__,
        "python": platform.python_version(),
        "command": command_line(sys.argv, directory=Path.cwd(), home=Path("~").expanduser()),
        "hardware": {**asdict(machine), "key": machine.key},
        "options": tuple(_options(config)),
    }


def utc(moment: datetime) -> str:
    """ISO 8601 with a Z, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _options(config: pytest.Config) -> Iterator[OptionValue]:
    for option in OPTIONS:
        in_ini = not option.choices
        default: Any = [] if option.repeatable else option.default if option.metavar or option.choices else False
        value, source = config.getoption(option.ini, None), "command line"
        if value is None:
            value = config.getini(option.ini) if in_ini else default
            source = "default" if value == default else "ini"
        if isinstance(value, list):
            shown: Any = tuple(map(str, value))
        else:
            shown = value if isinstance(value, bool) else without_secrets(str(value))
        yield OptionValue(option.name, shown, source)
