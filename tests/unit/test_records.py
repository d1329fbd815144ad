"""What a session writes: a record with its arrays or not at all, and nothing that was recorded is lost."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_llminfer.baselines import side_files
from pytest_llminfer.baselines.notes import RECORD, SIDE_FILE
from pytest_llminfer.baselines.record import BaselineKey
from pytest_llminfer.baselines.store import Store
from pytest_llminfer.errors import BaselineError
from pytest_llminfer.plugin.records import Records

if TYPE_CHECKING:
    from pathlib import Path

WITH_ARRAYS = BaselineKey("any", "reference", "divergence", "simulated-none-auto-kv_auto")
PLAIN = BaselineKey("any", "reference", "settings_defaults", "simulated-none-auto-kv_auto")
CONTENT = side_files.pack({"logprobs": np.zeros(3, np.float32)})
REFERENCE = side_files.refer("divergence", CONTENT)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bool]:
    """Side files find no room under the project while ``"now"`` is True; the temporary folder has room."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    state, write = {"now": True}, side_files.write

    def refuse(path: Path, content: bytes) -> None:
        if state["now"] and "baselines" in path.parts:
            raise BaselineError(f"side file {path} cannot be written: No space left on device")
        write(path, content)

    monkeypatch.setattr(side_files, "write", refuse)
    return state


def record(records: Records) -> None:
    records.take(SIDE_FILE, {"name": REFERENCE["name"], "content": base64.b64encode(CONTENT).decode()})
    for key, expected in ((WITH_ARRAYS, {"side_file": REFERENCE}), (PLAIN, {"value": 1})):
        records.take(RECORD, {"key": asdict(key), "expected": expected, "conditions": {}, "provenance": {}})


def test_a_record_whose_arrays_find_no_room_is_not_written_and_the_session_says_so(tmp_path: Path, full: dict[str, bool]) -> None:
    assert full["now"]
    store = Store(tmp_path / "baselines")
    records = Records(store, only_missing=False)
    record(records)
    lines = records.settle(verbose=False)
    assert lines[0].startswith("baselines: 1 recorded in ")
    assert lines[1].startswith("ERROR: side file ")
    fresh = Store(tmp_path / "baselines")
    assert fresh.load(WITH_ARRAYS) is None
    assert fresh.load(PLAIN) is not None


def test_the_rescue_folder_is_one_and_holds_records_and_arrays(tmp_path: Path, full: dict[str, bool]) -> None:
    assert full["now"]
    records = Records(Store(tmp_path / "baselines"), only_missing=False)
    record(records)
    (line,) = [line for line in records.settle(verbose=False) if line.startswith("ERROR")]
    (folder,) = (tmp_path / "temporary").iterdir()
    assert line.count(str(folder)) == 1
    rescue = Store(folder)
    assert rescue.load(WITH_ARRAYS) is not None
    assert side_files.load(REFERENCE, [rescue.path(WITH_ARRAYS).parent]) == CONTENT


def test_what_finds_room_later_is_written_and_no_error(tmp_path: Path, full: dict[str, bool]) -> None:
    records = Records(Store(tmp_path / "baselines"), only_missing=False)
    record(records)
    full["now"] = False
    assert [line for line in records.settle(verbose=False) if line.startswith("ERROR")] == []
    fresh = Store(tmp_path / "baselines")
    assert fresh.load(WITH_ARRAYS) is not None
    assert side_files.load(REFERENCE, [fresh.path(WITH_ARRAYS).parent]) == CONTENT


@pytest.mark.parametrize("content", ["{", '{"schema": 9}'])
def test_what_a_broken_file_cannot_take_is_kept_elsewhere_and_written_when_it_is_gone(
    tmp_path: Path, full: dict[str, bool], content: str
) -> None:
    full["now"] = False
    store = Store(tmp_path / "baselines")
    path = store.path(PLAIN)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    records = Records(store, only_missing=False)
    record(records)
    (line,) = [line for line in records.settle(verbose=False) if line.startswith("ERROR")]
    (folder,) = (tmp_path / "temporary").iterdir()
    assert line.startswith(f"ERROR: baseline file {path} ")
    assert line.endswith(f"; 1 record not written, kept in {folder}; copy that over when it can be written")
    assert Store(folder).load(PLAIN) is not None
    assert path.read_text() == content
    path.unlink()
    assert [line for line in records.settle(verbose=False) if line.startswith("ERROR")] == []
    assert Store(tmp_path / "baselines").load(PLAIN) is not None


def test_what_can_be_kept_nowhere_is_told_and_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "baselines"
    blocked.write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(blocked))
    records = Records(Store(blocked), only_missing=False)
    record(records)
    (line,) = [line for line in records.settle(verbose=False) if line.startswith("ERROR")]
    assert "; 2 records not written, nor could they be kept in a temporary folder: " in line
    blocked.unlink()
    assert [line for line in records.settle(verbose=False) if line.startswith("ERROR")] == []
    assert Store(blocked).load(WITH_ARRAYS) is not None


def test_a_record_that_was_made_otherwise_is_not_replaced_in_silence(tmp_path: Path) -> None:
    records = Records(Store(tmp_path), only_missing=False)
    for number in range(7):
        key = {**asdict(PLAIN), "entry": f"simulated-none-auto-kv_auto-dp{number + 2}"}
        how = [] if number == 0 else ["dtype: recorded 'bf16', now 'fp16'", "n: recorded 1, now 2"]
        records.take(RECORD, {"key": key, "expected": {}, "conditions": {}, "provenance": {}, "replaced": how})
    lines = [line for line in records.settle(verbose=False) if "recorded otherwise" in line]
    assert lines[0] == (
        "baselines: replaced any/reference/settings_defaults/simulated-none-auto-kv_auto-dp3, which was recorded otherwise: "
        "dtype: recorded 'bf16', now 'fp16'; n: recorded 1, now 2"
    )
    assert lines[5:] == ["baselines: and 1 more that were recorded otherwise (-v names them)"]
