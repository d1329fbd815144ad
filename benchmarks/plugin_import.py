"""What the plugin adds to every pytest session, whether or not it asks for an engine, beside what pytest-benchmark adds.

Import: milliseconds of importing a plugin after ``import pytest``, each time in a fresh interpreter, ours and theirs in turn.
Hooks: ``pytest`` on one empty test with one plugin, less the same session with none: the three in turn, many times in one
interpreter that has imported all of them, so that a difference of a millisecond is not lost in the start of a process. All other
installed plugins are left out. Both are the processor's time, which other programs on a shared machine disturb least. Byte code is
compiled beforehand, into a temporary folder. A session with the plugin may import neither torch nor numpy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

from result import Result, finish, mad

LIMIT_MS = 5.0
LIMIT_RATIO = 1.0
REPEATS = 20
ROUNDS_PER_REPEAT = 3
FORBIDDEN = {"torch", "numpy"}
OURS, THEIRS, NEITHER = "llminfer", "benchmark", ""
ARMS = (OURS, THEIRS, NEITHER)
MODULES = {OURS: "pytest_llminfer.plugin.hooks", THEIRS: "pytest_benchmark.plugin"}

IMPORT = """
import importlib, sys, time, pytest
start = time.process_time()
importlib.import_module(sys.argv[1])
print(time.process_time() - start)
"""

SESSIONS = """
import contextlib, gc, io, json, sys, time, pytest
arms, rounds = json.loads(sys.argv[1]), int(sys.argv[2])
taken = {arm: [] for arm in arms}
gc.disable()
for turn in range(rounds + 3):
    for arm in [*arms][turn % len(arms):] + [*arms][:turn % len(arms)]:
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            assert pytest.main(arms[arm]) == 0
        taken[arm].append(time.process_time() - start)
        gc.collect()
print(json.dumps({arm: found[3:] for arm, found in taken.items()}))
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


def imports_ms(folder: Path, repeats: int) -> dict[str, list[float]]:
    """By plugin, the processor's milliseconds of each import; a first one, which compiles the byte code, is not counted."""
    taken: dict[str, list[float]] = {arm: [] for arm in MODULES}
    for _ in range(repeats + 1):
        for arm, module in MODULES.items():
            command = [sys.executable, "-c", IMPORT, module]
            done = subprocess.run(command, cwd=folder, env=with_bytecode(folder), check=True, capture_output=True, text=True)
            taken[arm].append(1000 * float(done.stdout))
    return {arm: found[1:] for arm, found in taken.items()}


def arguments(arm: str) -> list[str]:
    """Of pytest: one test that does nothing, with one plugin or with none."""
    others = {entry.name for entry in entry_points(group="pytest11")} - {arm}
    blocked = [word for name in sorted({"hypothesispytest", *others}) for word in ("-p", f"no:{name}")]
    return ["-q", "-p", "no:cacheprovider", *blocked]


def check_modules(folder: Path) -> None:
    """End with an error if a session with the plugin imported a framework or NumPy."""
    (folder / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pytest", *arguments(OURS)]
    subprocess.run(command, cwd=folder, env=with_bytecode(folder), check=True, capture_output=True)
    imported = {name.partition(".")[0] for name in json.loads((folder / "modules.json").read_text())}
    if "pytest_llminfer" not in imported:
        sys.exit("the session did not load pytest_llminfer: is it installed in this environment?")
    if found := FORBIDDEN & imported:
        sys.exit(f"a session without an engine imported {', '.join(sorted(found))}")
    (folder / "conftest.py").unlink()


def sessions_ms(folder: Path, rounds: int) -> dict[str, list[float]]:
    """By arm, the processor's milliseconds of each of its sessions."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    check_modules(folder)
    arms = json.dumps({arm: arguments(arm) for arm in ARMS})
    command = [sys.executable, "-c", SESSIONS, arms, str(rounds)]
    done = subprocess.run(command, cwd=folder, env=with_bytecode(folder), check=True, capture_output=True, text=True)
    return {arm: [1000 * second for second in seconds] for arm, seconds in json.loads(done.stdout).items()}


def measure(repeats: int) -> list[Result]:
    """The import, the hooks, and both together beside pytest-benchmark's."""
    with tempfile.TemporaryDirectory() as folder:
        imports, sessions = imports_ms(Path(folder), repeats), sessions_ms(Path(folder), ROUNDS_PER_REPEAT * repeats)
    hooks = {arm: [took - alone for took, alone in zip(sessions[arm], sessions[NEITHER], strict=True)] for arm in MODULES}
    ours, theirs = (statistics.median(imports[arm]) + statistics.median(hooks[arm]) for arm in MODULES)
    return [
        Result("import of the plugin after pytest", statistics.median(imports[OURS]), " ms", None, spread(imports[OURS])),
        Result(
            "its hooks in a session of one test without an engine", statistics.median(hooks[OURS]), " ms", None, spread(hooks[OURS])
        ),
        Result("both together", ours, " ms", LIMIT_MS, "the sum of the two medians"),
        Result(
            "both together, over pytest-benchmark's",
            ours / theirs,
            "",
            LIMIT_RATIO,
            f"pytest-benchmark {theirs:.3g} ms: import {spread(imports[THEIRS])}; hooks {spread(hooks[THEIRS])}",
        ),
    ]


def spread(values: list[float]) -> str:
    """The median and how far the others lie from it."""
    return (
        f"median {statistics.median(values):.3g} ms of {len(values)}, MAD {mad(values):.2g}, {min(values):.3g} to {max(values):.3g}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="fresh interpreters; thrice as many rounds of sessions")
    finish(measure(parser.parse_args().repeats))
