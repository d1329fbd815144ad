"""What it takes to start an engine's own server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, EngineStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Progress

WORKER = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Order:
    """A server that is to be started.

    Attributes:
        spec: The cell that it serves.
        interpreter: Path of the engine's Python.
        model_path: Folder, file or hub id of the model.
        name: What the model is called on the server.
        port: Port of the loopback device.
        key: API key that the server must require.
        arguments: Those of ``engine_args`` that are the server's.
        folder: Folder that only this server and user can read, for files that hold the key.
        gpu: Exact name of the first visible accelerator; empty without one.
        progress: Called with (phase, done, total).
    """

    spec: EngineSpec
    interpreter: str
    model_path: str
    name: str
    port: int
    key: str
    arguments: Mapping[str, Any]
    folder: Path
    gpu: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started.

    The key stands in a variable's value or in a file, never in ``argv``, which every user of the machine can read.

    Attributes:
        argv: The command line, the interpreter first.
        variables: Added to the server's environment; empty for none.
        api: Endpoint for the client, ``completions`` or ``chat``, where the server decides it; empty where the client finds out.
        dtype: What the server computes in, where the command decides it; otherwise empty.
        kv_dtype: What it keeps keys and values in, where the command decides it; otherwise empty.
        device: ``cpu`` or ``cuda``.
    """

    argv: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    api: str = ""
    dtype: str = ""
    kv_dtype: str = ""
    device: str = "cpu"


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Command-line flags in the way of most servers: ``--name value``, ``--name`` or ``--no-name`` for a yes or no."""
    words: list[str] = []
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, (list, tuple)):
            words += [flag, *map(str, value)]
        elif value is not None:
            words += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def refuse_taken(arguments: Mapping[str, Any], *taken: str) -> None:
    """Refuse engine arguments that the cell or this package chooses.

    Raises:
        BadInputError: with the name of the argument.
    """
    for name in arguments:
        if name.replace("-", "_") in taken:
            raise BadInputError(f"the engine argument {name!r} is chosen by the cell or by the serving of it; leave it out")


def private_file(folder: Path, name: str, content: str) -> Path:
    """A file that only this user can read."""
    file = folder / name
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        stream.write(content)
    return file


def with_package(code: str) -> str:
    """``code`` for ``python -c`` in an engine's interpreter, with this package loaded from where it lies and nothing beside it."""
    loader = f"import runpy; runpy.run_path({str(WORKER / '__main__.py')!r}, run_name='llminfer_loader')['_load_package']()"
    return f"{loader}\n{code}"


def ask_interpreter(interpreter: str, code: str, *arguments: str, heartbeat: Callable[[], None], seconds: float = 3600) -> str:
    """What ``code`` prints, run in an engine's interpreter with this package loaded.

    Raises:
        BadInputError: it failed; the message is its last line.
        EngineStartError: no such interpreter, or it cannot be executed.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - the interpreter is the one that the user names
            [interpreter, "-c", with_package(code), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(interpreter),
        )
    except OSError as error:
        raise missing_interpreter(interpreter, error) from error
    waited = 0.0
    while True:
        try:
            out, err = process.communicate(timeout=5)
            break
        except subprocess.TimeoutExpired:
            heartbeat()
            waited += 5
            if waited > seconds:
                process.kill()
    if process.returncode:
        last = (err.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise BadInputError(last.split(": ", 1)[-1] if last.startswith("pytest_llminfer.errors.") else last)
    return out


def missing_interpreter(interpreter: str, error: OSError) -> EngineStartError:
    """The error for an interpreter that cannot be started."""
    return EngineStartError(
        f"cannot start the interpreter {interpreter}: {error.strerror}; give the path of a Python that has the engine"
    )


def clean_environment(interpreter: str) -> dict[str, str]:
    """The environment of another interpreter: without the paths of this one."""
    own = os.path.abspath(interpreter) == os.path.abspath(sys.executable)
    dropped = {"PYTHONHOME"} if own else {"PYTHONHOME", "PYTHONPATH"}
    return {name: value for name, value in os.environ.items() if name not in dropped}
