"""What the plugin adds to every pytest session, whether or not it asks for an engine.

Import: milliseconds of ``import pytest_llminfer.plugin`` after ``import pytest``, each time in a fresh interpreter.
Session: wall time of ``pytest`` on one empty test, with the plugin minus without it (``-p no:llminfer``), in pairs that lie side
by side in time and whose order alternates. Both sessions leave out the other installed plugins, so that nothing which they have
imported already is missing from the difference. Byte code is compiled beforehand, into a temporary folder: with
PYTHONDONTWRITEBYTECODE set, pytest would parse and rewrite every plugin anew in each session. At the end of a session with the
plugin, neither torch nor numpy may have been imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path

from result import Result, finish, mad

LIMIT_MS = 5.0
REPEATS = 20
FORBIDDEN = {"torch", "numpy"}

IMPORT = """
import pytest, time
start = time.perf_counter()
import pytest_llminfer.plugin
print(time.perf_counter() - start)
"""

CONFTEST = """
import json, pathlib, sys, pytest

@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    pathlib.Path("modules.json").write_text(json.dumps(sorted(sys.modules)))
"""


def with_bytecode(folder: Path) -> dict[str, str]:
    """The environment of a child that keeps what it compiles, and what pytest rewrites, under ``folder``."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def import_ms(folder: Path, repeats: int) -> list[float]:
    """Milliseconds of each import; a first one, which compiles the byte code, is not counted."""
    command = [sys.executable, "-c", IMPORT]
    seconds = []
    for _ in range(repeats + 1):
        done = subprocess.run(command, cwd=folder, env=with_bytecode(folder), check=True, capture_output=True, text=True)
        seconds.append(float(done.stdout))
    return [1000 * second for second in seconds[1:]]


def session_ms(folder: Path, *arguments: str) -> float:
    """Milliseconds of one session of one test that does nothing, from the start of its interpreter to its end."""
    others = [entry.name for entry in entry_points(group="pytest11") if entry.name != "llminfer"]
    blocked = [word for name in sorted({"hypothesispytest", *others}) for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *blocked, *arguments]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=with_bytecode(folder), check=True, capture_output=True)
    return 1000 * (time.perf_counter() - start)


def check_modules(folder: Path) -> None:
    """End with an error if a session with the plugin imported a framework or NumPy."""
    (folder / "conftest.py").write_text(CONFTEST)
    session_ms(folder)
    imported = {name.partition(".")[0] for name in json.loads((folder / "modules.json").read_text())}
    if "pytest_llminfer" not in imported:
        sys.exit("the session did not load pytest_llminfer: is it installed in this environment?")
    if found := FORBIDDEN & imported:
        sys.exit(f"a session without an engine imported {', '.join(sorted(found))}")
    (folder / "conftest.py").unlink()


def session_pairs_ms(folder: Path, pairs: int) -> list[tuple[float, float]]:
    """For each pair, the milliseconds of the session with the plugin, and of the one without it."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    check_modules(folder)
    session_ms(folder, "-p", "no:llminfer")
    taken = []
    for pair in range(pairs):
        arms: list[tuple[str, ...]] = [(), ("-p", "no:llminfer")]
        took = {arm: session_ms(folder, *arm) for arm in (reversed(arms) if pair % 2 else arms)}
        taken.append((took[arms[0]], took[arms[1]]))
    return taken


def measure(repeats: int) -> list[Result]:
    """The import, held to its limit, and the whole session, which holds the noise of two processes too."""
    with tempfile.TemporaryDirectory() as folder:
        imports, sessions = import_ms(Path(folder), repeats), session_pairs_ms(Path(folder), repeats)
    added = [plugin - alone for plugin, alone in sessions]
    fastest = min(plugin for plugin, _ in sessions) - min(alone for _, alone in sessions)
    return [
        Result(
            "import of the plugin after pytest",
            statistics.median(imports),
            " ms",
            LIMIT_MS,
            f"median of {repeats}; MAD {mad(imports):.2g} ms; {min(imports):.3g} to {max(imports):.3g} ms",
        ),
        Result(
            "what the plugin adds to a session without an engine",
            statistics.median(added),
            " ms",
            None,
            f"median of {repeats} paired differences; MAD {mad(added):.2g} ms; fastest minus fastest {fastest:.3g} ms",
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="fresh interpreters, and pairs of sessions")
    finish(measure(parser.parse_args().repeats))
