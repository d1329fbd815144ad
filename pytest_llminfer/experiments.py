"""Where the functions lie that suites send to a live transformers model."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "worker" / "backends" / "transformers" / "experiments"


def experiment(name: str) -> str:
    """``name`` ("formats.round_trip") as ``engine.run`` takes it: "path/to/formats.py::round_trip"."""
    file, _, function = name.partition(".")
    return f"{FOLDER / file}.py::{function}"
