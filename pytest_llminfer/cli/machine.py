"""The head of ``llminfer doctor``: this Python, this machine, the cache, and the programs and plugins that matter."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer import __version__
from pytest_llminfer.cli.console import gigabytes
from pytest_llminfer.engines.environments.cache import cache_folder
from pytest_llminfer.engines.environments.catalogue import size_of

if TYPE_CHECKING:
    from pytest_llminfer.hardware import Hardware

PLUGINS = ("pytest", "pytest-benchmark", "pytest-xdist", "tokenizers", "jinja2", "tqdm")
_DRIVER = Path("/proc/driver/nvidia/version")


def describe(hardware: Hardware) -> dict[str, Any]:
    """Plain facts about this machine and this interpreter; sizes in bytes."""
    cache = cache_folder()
    return {
        "llminfer": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu": hardware.cpu,
        "cores": hardware.cores,
        "memory_bytes": memory_bytes(),
        "gpus": hardware.count,
        "accelerator": hardware.accelerator,
        "gpu_memory_mib": hardware.memory_mib,
        "driver": hardware.driver,
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cache": str(cache),
        "cache_bytes": size_of(cache),
        "uv": shutil.which("uv") or "",
        "nvidia_smi": shutil.which("nvidia-smi") or "",
        "packages": {name: version(name) for name in PLUGINS},
    }


def head(machine: dict[str, Any], hardware: Hardware) -> list[str]:
    """The same facts as lines of text."""
    packages = ", ".join(f"{name} {found or 'missing'}" for name, found in machine["packages"].items())
    facts = {
        "llminfer": machine["llminfer"],
        "python": f"{machine['python']}, {machine['executable']}",
        "platform": machine["platform"],
        "machine": f"{hardware.describe()}, {gigabytes(machine['memory_bytes'])} memory",
        "cache": f"{machine['cache']}, {gigabytes(machine['cache_bytes'])}",
        "packages": packages,
    }
    width = max(map(len, facts)) + 1
    return [
        line
        for name, text in facts.items()
        for line in textwrap.wrap(
            f"{(name + ':').ljust(width)} {text}", 98, subsequent_indent=" " * (width + 1), break_long_words=False
        )
    ]


def notes(machine: dict[str, Any]) -> list[tuple[str, str]]:
    """What could be better but stops nothing: pairs of a note and the command that mends it, empty where there is none."""
    found = []
    if not machine["uv"]:
        found.append(("uv is not on PATH: environments are made with venv and pip, which takes longer", "pip install uv"))
    if not machine["nvidia_smi"] and _DRIVER.exists():
        found.append((
            "nvidia-smi is missing, though an NVIDIA driver is loaded: no GPU is seen",
            "install the NVIDIA utilities of your distribution, or give the container the utility capability",
        ))  # fmt: skip
    if machine["cuda_visible_devices"] is not None and not machine["gpus"] and machine["nvidia_smi"]:
        found.append((f"CUDA_VISIBLE_DEVICES={machine['cuda_visible_devices']!r} hides every GPU", "unset CUDA_VISIBLE_DEVICES"))
    absent = [name for name, there in machine["packages"].items() if not there]
    if absent:
        found.append(
            (f"{', '.join(absent)}: missing, and some suites need it", "pip install 'pytest-llminfer[suites]' pytest-xdist")
        )
    return found


def memory_bytes() -> int:
    """Bytes of physical memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def version(name: str) -> str:
    """The installed version of a distribution; empty without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
