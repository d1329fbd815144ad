"""Make an environment, once, and find it again."""

from __future__ import annotations

import datetime as dt
import errno
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Dependency

from pytest_llminfer.engines.environments import cache
from pytest_llminfer.engines.environments.installer import Installer
from pytest_llminfer.engines.environments.recipes import Requirement
from pytest_llminfer.errors import BadInputError, EngineStartError
from pytest_llminfer.hardware import visible_gpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    Progress = Callable[[str, int, int], None]

TORCH_INDEX = "https://download.pytorch.org/whl/"
_STEPS = 4


def interpreter(environment: str, *, progress: Progress | None = None, without_gpu: bool = False) -> str:
    """The interpreter that ``environment`` names: empty for this one, a path, a command, or ``NAME==VERSION``.

    For the last one an isolated environment is made in the user's cache folder, or used again; ``progress`` is called with
    (phase, done, total) meanwhile. Safe to call from several threads, processes and sessions at once. without_gpu: make one that
    needs a GPU where none is visible, too.

    Raises:
        BadInputError: a requirement that is written in another way, or a build for GPUs that is yet to be made where there is none.
        EngineStartError: no such interpreter, or the environment cannot be made.
    """
    if not environment:
        return sys.executable
    if "==" not in environment or os.sep in environment:
        return _existing(environment)
    requirement = Requirement.parse(environment)
    folder = cache.environments_folder() / requirement.folder
    if cache.read_marker(folder) is None:
        if requirement.instead_of_gpus and not without_gpu and not visible_gpus():
            raise BadInputError(
                f"{requirement} is a build for NVIDIA GPUs, and none is visible here: {requirement.instead_of_gpus}; "
                f"`llminfer env create {requirement}` makes its environment all the same"
            )
        _make_once(requirement, folder, progress if progress is not None else lambda *_: None)
    return str(cache.python_of(folder))


def _existing(environment: str) -> str:
    path = str(Path(environment).expanduser()) if environment.startswith("~") else environment
    found = shutil.which(path)
    if found is not None:
        return found
    reason = os.strerror(errno.EACCES if Path(path).exists() else errno.ENOENT)
    raise EngineStartError(
        f"cannot start the interpreter {environment}: {reason}; "
        "give the path of a Python that has the engine, as in --engine=transformers@/path/to/python"
    )


def _make_once(requirement: Requirement, folder: Path, progress: Progress) -> None:
    waiting = functools.partial(progress, f"waiting for another session that makes {requirement}", 0, _STEPS)
    with cache.locked(folder, waiting=waiting) as lock:
        if cache.read_marker(folder) is not None:
            return
        cache.discard(folder)
        try:
            _make(requirement, folder, lock, progress)
        except BaseException:
            cache.discard(folder)
            raise


def _make(requirement: Requirement, folder: Path, lock: IO[bytes], progress: Progress) -> None:
    started = time.monotonic()
    log = cache.log_of(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    installer = Installer(Installer.find(), folder, cache.python_of(folder), log, lock, str(requirement))
    given = ["-c", requirement.constraints] if requirement.constraints else []

    progress(f"making the environment of {requirement}", 0, _STEPS)
    installer.make()
    # Alone first: its metadata say which torch it was built for, and that torch has to be there before anything asks for one.
    installer.install("--no-deps", *given, str(requirement))
    torch = pinned_torch(requirement.name, folder)
    if torch:
        progress(f"installing torch=={torch}", 1, _STEPS)
        _install_torch(installer, torch, given)
    progress(f"installing {requirement} and what it needs", 2, _STEPS)
    installer.install(*given, *_hold_torch(folder), *requirement.full)
    progress(f"checking the environment of {requirement}", 3, _STEPS)
    dropped = _drop_misfits(installer, requirement.recipe.suspects, folder)
    if requirement.recipe.alias:
        write_alias(requirement.name, requirement.recipe.alias, folder)
    facts = {
        "name": requirement.name,
        "version": requirement.version,
        "recipe": asdict(requirement.recipe),
        "constraints": requirement.constraints,
        "python": platform.python_version(),
        "installer": "uv" if installer.uv else "pip",
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "installed": installed(folder),
        "dropped": dropped,
    }
    cache.write_marker(folder, facts)
    progress(f"made the environment of {requirement}", _STEPS, _STEPS)


def _install_torch(installer: Installer, torch: str, given: list[str]) -> None:
    _, _, build = torch.partition("+")
    try:
        installer.install(*given, f"torch=={torch}")
    except EngineStartError as error:
        # A local build ("+cpu", "+cu130") is in no general index; the one of PyTorch is asked only where the user's have none.
        if not build or "there is no such" not in str(error):
            raise
        installer.install(*given, "--extra-index-url", TORCH_INDEX + build, f"torch=={torch}")


def _hold_torch(folder: Path) -> list[str]:
    found = _distribution("torch", folder)
    if found is None:
        return []
    held = folder / "constraints.txt"
    held.write_text(f"torch=={found.version}\n", encoding="utf-8")
    return ["-c", str(held)]


def pinned_torch(name: str, folder: Path) -> str:
    """The one version of torch that the distribution ``name`` in the environment asks for; empty if it leaves a choice."""
    found = _distribution(name, folder)
    for line in (found.requires or []) if found else []:
        try:
            dependency = Dependency(line)
        except InvalidRequirement:
            continue
        applies = dependency.marker is None or dependency.marker.evaluate({"extra": ""})
        exact = [part.version for part in dependency.specifier if part.operator == "==" and not part.version.endswith("*")]
        if dependency.name == "torch" and applies and exact:
            return exact[0]
    return ""


def _drop_misfits(installer: Installer, suspects: tuple[str, ...], folder: Path) -> list[str]:
    present = [name for name in suspects if _distribution(name, folder) is not None]
    misfits = [name for name in present if not installer.can_import(name)]
    if misfits:
        installer.uninstall(*misfits)
    return misfits


def write_alias(name: str, alias: str, folder: Path) -> None:
    """Let the metadata of distribution ``name`` be found under ``alias`` too, unless that one is installed itself.

    Its version gets the local part "cpu", by which vLLM recognises the platform: without the alias its own command and
    every ``importlib.metadata.version("vllm")`` end in PackageNotFoundError.
    """
    found = _distribution(name, folder)
    if found is None or _distribution(alias, folder) is not None:
        return
    version = found.version if "+" in found.version else f"{found.version}+cpu"
    metadata = cache.site_packages_of(folder)[0] / f"{alias}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {alias}\nVersion: {version}\n", encoding="utf-8")


def installed(folder: Path) -> list[str]:
    """What is in the environment, as ``name==version``, in the order of the names."""
    found = importlib.metadata.distributions(path=[str(path) for path in cache.site_packages_of(folder)])
    return sorted({f"{re.sub(r'[-_.]+', '-', each.name).lower()}=={each.version}" for each in found})


def _distribution(name: str, folder: Path) -> importlib.metadata.Distribution | None:
    paths = [str(path) for path in cache.site_packages_of(folder)]
    return next(iter(importlib.metadata.distributions(name=name, path=paths)), None)
