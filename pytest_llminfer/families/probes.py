"""Where the functions lie that suites send to a live model in a worker."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def bundled_probe(name: str) -> str:
    """``name`` ("quantization.formats.round_trip") as ``engine.run`` takes it: "path/to/probes/formats.py::round_trip"."""
    family, file, function = name.split(".")
    return f"{FOLDER / family / 'probes' / file}.py::{function}"
