"""The interpreters of quantization tools: one environment a tool in the user's cache, made once with venv and pip.

torch is installed first and held, so that nothing draws another build of it; pip and not uv, because a local folder of wheels
may be where the torch for this machine lies.
"""

from __future__ import annotations

import datetime as dt
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llminfer.engines.environments import cache, interpreter
from pytest_llminfer.engines.environments.installer import Installer
from pytest_llminfer.engines.environments.making import installed

if TYPE_CHECKING:
    from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True, slots=True)
class Tool:
    """What is installed for one tool. name: of its folder. build: before the tool, for packages that are built here.

    isolated: whether pip builds in an environment of its own, which would draw another torch where a build asks for one.
    """

    name: str
    packages: tuple[str, ...]
    build: tuple[str, ...] = ()
    isolated: bool = True


GPTQMODEL = Tool(
    name="gptqmodel-7.6.0",
    build=("setuptools", "wheel", "ninja", "numpy"),
    packages=("gptqmodel==7.6.0", "optimum==2.3.0"),
    isolated=False,
)
LLMCOMPRESSOR = Tool(name="llmcompressor-0.14.0.1", packages=("llmcompressor==0.14.0.1", "transformers==5.17.0"))
LLAMACPP = "llama-cpp-python==0.3.36"


def python_of(tool: Tool | str) -> str:
    """The interpreter of a tool; its environment is made when it is not there. A ``str`` is an engine's environment."""
    if isinstance(tool, str):
        return interpreter(tool, progress=lambda phase, *_: print(phase, file=sys.stderr))
    folder = folder_of(tool)
    if cache.read_marker(folder) is None:
        with cache.locked(folder, waiting=lambda: print(f"waiting for another session that makes {tool.name}", file=sys.stderr)):
            if cache.read_marker(folder) is None:
                _make(tool, folder)
    return str(cache.python_of(folder))


def folder_of(tool: Tool) -> Path:
    """Where its environment is, or will be."""
    return cache.cache_folder() / "tool-environments" / f"{tool.name}-py{sys.version_info.major}.{sys.version_info.minor}"


def versions(tool: Tool | str, *names: str) -> dict[str, str]:
    """The version of each of these packages in the tool's environment; those that are not there are left out."""
    folder = cache.python_of(folder_of(tool)).parents[1] if isinstance(tool, Tool) else _folder_of_python(python_of(tool))
    found = dict(entry.split("==", 1) for entry in installed(folder))
    return {name: found[name] for name in names if name in found}


def _folder_of_python(python: str) -> Path:
    from pathlib import Path

    return Path(python).parents[1]


def _make(tool: Tool, folder: Path) -> None:
    print(f"making the environment of {tool.name} in {folder}", file=sys.stderr)
    cache.discard(folder)
    log = cache.log_of(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    with log.open("ab") as held:
        installer = Installer("", folder, cache.python_of(folder), log, held, tool.name)
        try:
            installer.make()
            installer.install(TORCH)
            constraints = folder / "constraints.txt"
            constraints.write_text(f"{TORCH}\n", encoding="utf-8")
            given = ["-c", str(constraints)]
            if tool.build:
                installer.install(*given, *tool.build)
            installer.install(*given, *([] if tool.isolated else ["--no-build-isolation"]), *tool.packages)
        except BaseException:
            cache.discard(folder)
            raise
    facts = {"name": tool.name, "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "installed": installed(folder)}
    cache.write_marker(folder, facts)
