"""The file format: what is refused, how it reads, and that a file is replaced whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llminfer.baselines.document import empty, locked, read, render, replace_file
from pytest_llminfer.errors import BaselineError

if TYPE_CHECKING:
    from pathlib import Path

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
RECORD = '{"expected": {}, "conditions": {}, "provenance": {}}'


@settings(deadline=None)
@given(JSON)
def test_rendered_json_reads_back_equal(value: Any) -> None:
    text = render(value)
    text.encode()
    assert json.loads(text) == value
    assert render(json.loads(text)) == text


@settings(deadline=None)
@given(JSON)
def test_every_character_of_a_file_can_be_seen(value: Any) -> None:
    assert all(line.isprintable() for line in render(value).split("\n"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ([], "[]"),
        ({"b": 1, "a": [1, 2.5, None, True, "x"]}, '{\n  "a": [1, 2.5, null, true, "x"],\n  "b": 1\n}'),
        ({"t": [[1, 2], []]}, '{\n  "t": [\n    [1, 2],\n    []\n  ]\n}'),
        ("naïve 模型", '"naïve 模型"'),
        ("a\u00a0b\u202e\n\ud800", '"a\\u00a0b\\u202e\\n\\ud800"'),
        ("\U000e0001", '"\\udb40\\udc01"'),
    ],
)
def test_the_format_is_made_for_review(value: Any, text: str) -> None:
    assert render(value) == text
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON: Expecting value: line 1 column 1"),
        (b'{"schema": 2,\n<<<<<<< HEAD', "holds the marks of a merge conflict \\(line 2\\): keep one side"),
        (b"\xff\xfe", "is not JSON: .*can't decode byte"),
        (b'{"schema": NaN}', "is not JSON: NaN is not a JSON number"),
        (b'{"schema": 2, "schema": 2}', "is not JSON: the key 'schema' stands twice"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds a list, not an object"),
        (b"{}", r"has no valid 'schema' \(found None\)"),
        (b'{"schema": true}', r"has no valid 'schema' \(found True\)"),
        (b'{"schema": 0}', r"has no valid 'schema' \(found 0\)"),
        (b'{"schema": 2, "family": "other"}', "holds the family 'other', not 'f'"),
        (b'{"schema": 2, "family": "f"}', "has no 'entries' object"),
        (b'{"schema": 2, "family": "f", "entries": []}', "has no 'entries' object"),
        (b'{"schema": 2, "family": "f", "entries": {"e": 1}}', "has no 'expected' object in the entry 'e'"),
        (b'{"schema": 2, "family": "f", "entries": {"e": {"expected": {}}}}', "has no 'conditions' object in the entry 'e'"),
    ],
)
@pytest.mark.fault(
    "files",
    "a baseline file is empty, cut, merged, of another encoding or shape",
    "one line with file and way out; the file stays as it is",
)
def test_a_broken_file_is_one_clear_line_and_stays(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(BaselineError, match=message) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"baseline file {path} ")
    assert text.endswith("restore it from version control, or delete it and record anew with --update-baselines")
    assert "\n" not in text
    assert path.read_bytes() == content


@pytest.mark.fault("files", "a baseline of a newer version", "one line that asks for an upgrade")
def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text('{"schema": 3, "family": "f", "rows": []}')
    with pytest.raises(BaselineError, match="upgrade pytest-llminfer") as caught:
        read(path)
    assert str(caught.value) == f"baseline file {path} was written by a newer version (schema 3); upgrade pytest-llminfer"


def test_an_older_schema_names_the_command_that_brings_it_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "baselines" / "any" / "reference" / "f.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "family": "f", "entries": {}}')
    with pytest.raises(BaselineError, match="older version") as caught:
        read(path)
    told = f"was written by an older version (schema 1); bring it up to date: llminfer baselines migrate {tmp_path / 'baselines'}"
    assert str(caught.value) == f"baseline file {path} {told}"
    assert read(path, oldest=1) == {"schema": 1, "family": "f", "entries": {}}


def test_a_file_that_cannot_be_read_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    (tmp_path / "f.json").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(BaselineError, match="cannot be read: Is a directory"):
        read(tmp_path / "f.json")
    with pytest.raises(BaselineError, match="cannot be read: Not a directory"):
        read(tmp_path / "file" / "f.json")
    assert read(tmp_path / "nowhere" / "f.json") is None


def test_a_document_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    document = {**empty("f"), "entries": {"e": json.loads(RECORD)}}
    replace_file(path, render(document))
    assert read(path) == document


def test_a_replaced_file_is_readable_by_others_and_leaves_nothing_behind(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        replace_file(tmp_path / "f.json", "1")
        replace_file(tmp_path / "f.json", "é")
    finally:
        os.umask(mask)
    assert (tmp_path / "f.json").read_text(encoding="utf-8") == "é"
    assert stat.S_IMODE((tmp_path / "f.json").stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "f.json").symlink_to(tmp_path / "shared" / "f.json")
    replace_file(tmp_path / "f.json", "1")
    assert (tmp_path / "f.json").is_symlink()
    assert (tmp_path / "shared" / "f.json").read_text() == "1"


@pytest.mark.fault("files", "writing fails half way", "the file is as it was")
def test_a_write_that_fails_half_way_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.json").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "f.json", "new")
    assert (tmp_path / "f.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_a_lock_is_exclusive_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    with locked(path):
        with pytest.raises(TimeoutError, match="was held by another session for"), locked(path, timeout_seconds=0.05):
            pytest.fail("two held one lock")
        assert (tmp_path / ".f.json.lock").exists()
    assert list(tmp_path.iterdir()) == []
    with locked(path, timeout_seconds=0.05):
        pass


@pytest.mark.fault("files", "a killed session left its lock", "the next session takes it")
def test_a_lock_left_by_a_killed_session_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".f.json.lock").write_text("")
    with locked(tmp_path / "f.json", timeout_seconds=0.05):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_the_holder_before_removed_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, lock = fcntl.flock, tmp_path / ".f.json.lock"
    removals = [lock.unlink]

    def removed_just_before(descriptor: int, operation: int) -> None:
        if removals:
            removals.pop()()
        original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_just_before)
    with locked(tmp_path / "f.json", timeout_seconds=5):
        assert lock.exists()
        with pytest.raises(TimeoutError, match="was held by another session"), locked(tmp_path / "f.json", timeout_seconds=0.05):
            pytest.fail("two held one lock")


def test_a_file_system_without_locks_is_written_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_descriptor: int, _operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(tmp_path / "f.json"):
        pass
    assert list(tmp_path.iterdir()) == []
