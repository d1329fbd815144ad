"""What a server, an engine or a file says is shown without terminal control, and no longer than can be read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.engines.worker_process import WorkerProcess
from pytest_llminfer.errors import BadInputError, EngineDiedError, EngineError
from pytest_llminfer.printable import MOST_CHARACTERS, bounded, printable
from pytest_llminfer.report.align import writable
from pytest_llminfer.report.table import TableEntry, render_table
from pytest_llminfer.verdict import Outcome, Verdict

OWNED = "\x1b[2K\x1b[1A PASSED \x1b]0;owned\x07"
SHOWN = r"\x1b[2K\x1b[1A PASSED \x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (OWNED, SHOWN),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("back\rspace\x08", r"back\rspace\x08"),
        ("\x9b31mred", r"\x9b31mred"),
        ("user\u202egnp.exe", r"user\u202egnp.exe"),
        ("Größe ≤ 4 🙂 日本", "Größe ≤ 4 🙂 日本"),
        ("\u200e", r"\u200e"),
    ],
)
def test_what_a_terminal_obeys_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    found = printable(text)
    assert not any((ord(each) < 0x20 and each not in "\n\t") or 0x7F <= ord(each) < 0xA0 for each in found)
    assert printable(found) == found


@pytest.mark.fault("secrets", "an engine, a server or a path holds terminal control", "shown as escapes")
def test_errors_verdicts_and_tables_hold_none_of_it() -> None:
    assert str(BadInputError(f"the server says {OWNED}")) == f"the server says {SHOWN}"
    verdict = Verdict(Outcome.FAIL, "same", "1", (), "exact", "here", "exact", "", (OWNED,))
    assert SHOWN in str(verdict)
    assert OWNED not in str(verdict)
    lines = render_table({f"openai@{OWNED}": {"chat": TableEntry("pass", OWNED[:20])}}, ["chat"], 200)
    assert not any("\x1b" in line for line in lines)
    assert writable(OWNED, "ascii") == SHOWN


@pytest.mark.fault("processes", "an error of 10 MB", "its two ends are shown")
def test_a_long_message_shows_its_ends() -> None:
    assert bounded("x" * MOST_CHARACTERS) == "x" * MOST_CHARACTERS
    shown = str(EngineError("start " + "x" * 10_000_000 + " end"))
    assert len(shown) < MOST_CHARACTERS + 100
    assert shown.startswith("start x")
    assert shown.endswith("x end")
    assert "[… 9,980,010 characters left out …]" in shown


@pytest.mark.fault("processes", "a log of 3 GiB", "its last 64 KiB are read")
def test_the_end_of_a_log_is_read_however_long_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        os.truncate(file.fileno(), 3 << 30)
        file.seek(3 << 30)
        file.write(b"\n" + b"y" * 5000 + b"\nthe last word\n")
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    worker = WorkerProcess(process, log)
    process.wait()
    started = time.monotonic()
    with pytest.raises(EngineDiedError, match="exited with status 0") as raised:
        worker.request("generate", {}, timeout=20)
    assert time.monotonic() - started < 20
    assert str(raised.value).endswith("\n    the last word")
    assert len(str(raised.value)) < MOST_CHARACTERS
