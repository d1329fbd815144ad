"""Two sessions at once: nothing is lost, and nobody reads half a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest_llminfer
from pytest_llminfer.baselines import document

WRITER = """
import sys
from pathlib import Path
from pytest_llminfer.baselines.record import BaselineKey, Record
from pytest_llminfer.baselines.store import Store
directory, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for index in range(count):
    store = Store(directory)
    store.stage(BaselineKey("any", "m", "f", f"{name}-{index}"), Record({"tokens": list(range(500))}, {}, {}))
    store.write()
"""


def test_two_sessions_that_write_at_once_lose_nothing_and_readers_never_see_half(tmp_path: Path) -> None:
    count = 30
    environment = {**os.environ, "PYTHONPATH": str(Path(pytest_llminfer.__file__).parents[1])}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name, str(count)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        path, sizes = tmp_path / "any" / "m" / "f.json", [0]
        while any(writer.poll() is None for writer in writers):
            found = document.read(path)
            sizes.append(len(found["entries"]) if found else 0)
        for writer in writers:
            writer.communicate(timeout=60)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sizes == sorted(sizes)
    found = document.read(path)
    assert found is not None
    assert set(found["entries"]) == {f"{name}-{index}" for name in "ab" for index in range(count)}
    assert [file.name for file in path.parent.iterdir()] == ["f.json"]
