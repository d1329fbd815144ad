"""From what a probe found to a state, its reason and the command that mends it. Pure."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.engines.profiles.base import Profile
    from pytest_llminfer.hardware import Hardware

MISSING, BROKEN, PARTIAL, READY = "missing", "broken", "no GPU", "ok"


@dataclass(frozen=True, slots=True)
class Place:
    """One interpreter to look into.

    Attributes:
        label: What the table calls it.
        interpreter: Path of its Python.
        requirement: What its environment was made for, ``NAME==VERSION``; empty for an interpreter that is not one of our
            environments.
    """

    label: str
    interpreter: str
    requirement: str = ""

    @property
    def is_own(self) -> bool:
        """Whether it is the interpreter that runs this command."""
        return self.interpreter == sys.executable


@dataclass(frozen=True, slots=True)
class Finding:
    """One engine in one interpreter.

    Attributes:
        engine: Name of the engine.
        place: What the table calls the interpreter.
        interpreter: Path of its Python.
        state: ``ok``, ``no GPU`` (runs, but on the processor), ``broken`` or ``missing``.
        version: Of the distribution that brings the engine; empty where it is missing.
        torch: Version of torch; empty where the engine does not use it or it is missing.
        cuda: Version of CUDA or HIP that torch was built for; empty for a CPU build.
        gpus: How many GPUs torch sees; 0 without torch.
        seconds: How long the import took; 0.0 where there was none.
        reason: Why the state is not ``ok``; empty where it is.
        mend: Commands that would help, each sufficient by itself; empty where nothing is to be done.
    """

    engine: str
    place: str
    interpreter: str
    state: str
    version: str = ""
    torch: str = ""
    cuda: str = ""
    gpus: int = 0
    seconds: float = 0.0
    reason: str = ""
    mend: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether a cell of this engine can start there."""
        return self.state in {READY, PARTIAL}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"runs": self.runs}


def diagnose(engine: Profile, place: Place, found: Mapping[str, Any], hardware: Hardware) -> Finding:
    """What ``found``, the answer of ``probe.examine`` (``error`` alone if it gave none), means on this ``hardware``."""
    state, reason = READY, ""
    mend: tuple[str, ...] = ()
    missing = found.get("missing", [])
    if missing and not found.get("version"):
        state, reason, mend = MISSING, "not installed", install(engine, place, hardware)
    elif missing:
        state, reason, mend = BROKEN, f"{' and '.join(missing)} not installed", install(engine, place, hardware)
    elif found.get("error"):
        state, reason = BROKEN, _first_line(found["error"])
        mend = _mend_import(engine, place, found, hardware)
    elif trouble := _gpu_trouble(engine, place, found, hardware):
        state, reason, mend = PARTIAL, trouble[0], (trouble[1],)
    return Finding(
        engine=engine.name,
        place=place.label,
        interpreter=place.interpreter,
        state=state,
        version=found.get("version", ""),
        torch=found.get("torch", ""),
        cuda=found.get("cuda", ""),
        gpus=found.get("gpus", 0),
        seconds=found.get("seconds", 0.0),
        reason=reason,
        mend=mend,
    )


def install(engine: Profile, place: Place, hardware: Hardware) -> tuple[str, ...]:
    """The commands that bring ``engine``: the first, or instead of it one of the others."""
    if place.requirement:
        return (f"llminfer env remove {place.requirement} && llminfer env create {place.requirement}",)
    known = engine.installed_as()
    if not (place.is_own and known.extra):
        return (f"{_pip(place)} install {' '.join(shlex.quote(each) for each in known.packages)}",)
    extra = f"pip install 'pytest-llminfer[{engine.name}]'"
    own = known.advised if hardware.accelerator else known.advised_on_cpu or known.advised
    return (f"llminfer env create {own}", extra) if own else (extra,)


def _mend_import(engine: Profile, place: Place, found: Mapping[str, Any], hardware: Hardware) -> tuple[str, ...]:
    if place.requirement:
        return install(engine, place, hardware)
    if module := re.match(r"ModuleNotFoundError: No module named '([\w]+)", found["error"]):
        return (f"{_pip(place)} install {module[1].replace('_', '-')}",)
    pinned = f"{found['distribution']}=={found['version']}" if found.get("distribution") else ""
    if engine.installed_as().advised and pinned:
        return (f"llminfer env create {pinned}",)
    return (f"{_pip(place)} install --force-reinstall {pinned or engine.name}",)


def _gpu_trouble(engine: Profile, place: Place, found: Mapping[str, Any], hardware: Hardware) -> tuple[str, str] | None:
    gpus = f"{hardware.count} GPU{'s' * (hardware.count != 1)}"
    if not hardware.count or found.get("gpus") or found.get("offload") or not engine.takes_gpus:
        return None
    known = engine.installed_as()
    if known.gpu_variables:
        command = f"{known.gpu_variables} {_pip(place)} install --force-reinstall --no-cache-dir"
        return f"a CPU-only build on a machine with {gpus}", f"{command} {known.distributions[0]}=={found['version']}"
    if not found.get("cuda"):
        return f"a CPU-only build of torch on a machine with {gpus}", _gpu_build(engine, place, found)
    driver = found.get("driver_cuda", "")
    if driver and _major(driver) < _major(found["cuda"]):
        return (
            f"torch is built for CUDA {found['cuda']}, the driver {hardware.driver} runs CUDA {driver} at most",
            f"update the NVIDIA driver, or take a build for CUDA {driver}",
        )
    said = "; ".join(found.get("warnings", []))
    return f"torch sees none of {gpus}{': ' + _first_line(said) if said else ''}", "nvidia-smi; echo $CUDA_VISIBLE_DEVICES"


def _gpu_build(engine: Profile, place: Place, found: Mapping[str, Any]) -> str:
    advised = engine.installed_as().advised
    if advised and found.get("version"):
        return f"llminfer env create {advised.partition('==')[0]}=={found['version'].partition('+')[0]}"
    return f"{_pip(place)} install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"


def _pip(place: Place) -> str:
    return f"{shlex.quote(place.interpreter)} -m pip"


def _major(version: str) -> int:
    return int(version.partition(".")[0]) if version.partition(".")[0].isdecimal() else 0


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
