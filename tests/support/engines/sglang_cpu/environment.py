"""An environment in which SGLang runs on a plain CPU: made once for a set of pins and shims, then found again."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS, SHIMS = HERE / "requirements.txt", HERE / "shims"
TORCH = "torch==2.13.0"
ENGINE = ("sglang==0.5.18", "torchvision==0.28.0")
"""Installed without their dependencies, which are CUDA builds and kernels."""

DONE = "complete"


def make(folder: Path) -> Path:
    """The interpreter of the environment in ``folder``, which is made if it is not there.

    A second process waits for the first one; what an interrupted one left is thrown away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"sglang-cpu-{_fingerprint()}"
    with (folder / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / DONE).is_file():
            shutil.rmtree(place, ignore_errors=True)
            _build(place)
            (place / DONE).touch()
    return place / "bin" / "python"


def _fingerprint() -> str:
    files = [REQUIREMENTS, *sorted(path for path in SHIMS.rglob("*") if path.is_file() and "__pycache__" not in path.parts)]
    digest = hashlib.sha256(f"{sys.version_info[:2]} {TORCH} {ENGINE}".encode())
    for file in files:
        digest.update(f"{file.relative_to(HERE)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _build(place: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    constraints = place / "constraints.txt"
    constraints.write_text(f"{TORCH}\n", encoding="utf-8")
    _install(place, TORCH)
    _install(place, "--no-deps", *ENGINE)
    _install(place, "--constraint", str(constraints), "--requirement", str(REQUIREMENTS))
    (site,) = (place / "lib").glob("python*/site-packages")
    shutil.copytree(SHIMS, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def _install(place: Path, *what: str) -> None:
    command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
