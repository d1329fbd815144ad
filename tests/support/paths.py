"""Where the files lie that tests read, copy, or hand to a worker by path."""

from __future__ import annotations

from pathlib import Path

import pytest_llminfer

REPOSITORY = Path(__file__).resolve().parents[2]
SUITES = REPOSITORY / "suites"
ASSETS = REPOSITORY / "assets"
BASELINES = REPOSITORY / "baselines"
REFERENCE = Path(pytest_llminfer.__file__).parent / "models" / "reference"

FAULTS = Path(__file__).with_name("faults")
PROBES = Path(__file__).with_name("probes")
"""Functions that a worker calls with its live model. They import frameworks, and are never imported in the pytest process."""

PROGRAMS = Path(__file__).with_name("programs")
"""Programs for the interpreter of an engine."""
