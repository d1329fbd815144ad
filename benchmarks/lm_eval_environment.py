"""Where lm-evaluation-harness runs: an environment of its own in the user's cache folder, made once for a set of pins.

Its filters and metrics alone need no torch and are there in seconds; its models come with torch and transformers at the versions
of this repository's ``constraints.txt``, which takes a minute or two.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from pytest_llminfer.engines.environments.cache import cache_folder, python_of

LM_EVAL = "0.4.13"
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
FILTERS = (
    ("--no-deps", f"lm-eval=={LM_EVAL}"),
    ("jinja2", "numpy", "pyyaml==6.0.3", "requests", "sacrebleu==2.6.0", "typing-extensions"),
)
MODELS = (("torch",), (f"lm-eval[hf]=={LM_EVAL}",))
"""What each kind of environment installs, one call of pip after another; torch comes first and alone."""

DONE = "complete"


def filters() -> Path:
    """An interpreter that can import lm-eval's filters, its metrics, and what words prompts and cuts answers."""
    return _make("lm-eval-filters", FILTERS)


def models() -> Path:
    """An interpreter that can run ``python -m lm_eval --model hf``."""
    return _make("lm-eval-models", MODELS)


def _make(name: str, steps: tuple[tuple[str, ...], ...]) -> Path:
    """A second process waits for the first one; what an interrupted one left is thrown away."""
    pins = f"{sys.version_info[:2]} {steps} {CONSTRAINTS.read_text(encoding='utf-8')}"
    place = cache_folder() / "test-environments" / f"{name}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / DONE).is_file():
            shutil.rmtree(place, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
            for step in steps:
                _install(place, step)
            (place / DONE).touch()
    return python_of(place)


def _install(place: Path, what: tuple[str, ...]) -> None:
    pip = [str(python_of(place)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
    done = subprocess.run([*pip, *what], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join([*pip, *what])} failed:\n{done.stderr[-4000:]}")
