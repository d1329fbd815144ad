"""The store: what is recorded is kept, what was there stays, and nothing is written unasked."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llminfer.baselines import document
from pytest_llminfer.baselines.record import BaselineKey, Record
from pytest_llminfer.baselines.store import LayeredSource, Store
from pytest_llminfer.errors import BaselineError

KEY = BaselineKey("any", "reference", "gsm8k", "transformers-none-auto-kv_auto")
OTHER = replace(KEY, entry="transformers-nf4-auto-kv_auto")
OLD = Record({"accuracy": 0.5}, {"prompt": "a"}, {"n": 1})
NEW = Record({"accuracy": 0.75}, {"prompt": "a"}, {"n": 2})

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=3)
RECORDS = st.builds(Record, OBJECTS, OBJECTS, OBJECTS)
KEYS = st.builds(
    BaselineKey, st.sampled_from(["any", "gpu-x1"]), st.sampled_from(["a/b", "c"]), st.sampled_from(["f", "g"]), st.text(max_size=3)
)


def filled(directory: Path, records: dict[BaselineKey, Record]) -> Store:
    store = Store(directory)
    for key, record in records.items():
        store.stage(key, record)
    store.write()
    return store


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(KEYS, RECORDS, max_size=5))
def test_records_come_back_equal(records: dict[BaselineKey, Record]) -> None:
    with tempfile.TemporaryDirectory() as name:
        filled(Path(name), records)
        store = Store(Path(name))
        assert {key: store.load(key) for key in records} == records
        assert store.unused() == []


@settings(max_examples=30, deadline=None)
@given(
    first=st.dictionaries(KEYS, RECORDS, max_size=5),
    second=st.dictionaries(KEYS, RECORDS, max_size=5),
    only_missing=st.booleans(),
)
def test_two_stores_that_merge_keep_all(
    *, first: dict[BaselineKey, Record], second: dict[BaselineKey, Record], only_missing: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        one, two = Store(Path(name)), Store(Path(name))
        for key, record in first.items():
            one.stage(key, record)
        for key, record in second.items():
            two.stage(key, record, only_missing=only_missing)
        one.write()
        two.write()
        store = Store(Path(name))
        merged = {**second, **first} if only_missing else {**first, **second}
        assert {key: store.load(key) for key in merged} == merged


def test_the_layout_on_disk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.stage(KEY, OLD)
    assert store.write() == [tmp_path / "any/reference/gsm8k.json"] == [store.path(KEY)]
    text = store.path(KEY).read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "schema": 2,
        "family": "gsm8k",
        "entries": {KEY.entry: {"expected": {"accuracy": 0.5}, "conditions": {"prompt": "a"}, "provenance": {"n": 1}}},
    }


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    store = Store(tmp_path / "baselines")
    assert store.load(KEY) is None
    store.stage(KEY, OLD)
    assert store.unused() == []
    assert store.load(KEY) is None
    assert list(tmp_path.iterdir()) == []
    assert Store(tmp_path / "baselines").write() == []
    assert list(tmp_path.iterdir()) == []


def test_other_entries_are_kept_and_the_same_again_changes_nothing(tmp_path: Path) -> None:
    filled(tmp_path, {OTHER: OLD})
    store = Store(tmp_path)
    assert store.load(KEY) is None
    store.stage(KEY, NEW)
    assert len(store.write()) == 1
    assert (store.load(KEY), store.load(OTHER)) == (NEW, OLD)
    before = files(tmp_path)
    assert store.write() == []
    store.stage(KEY, NEW)
    assert store.write() == []
    assert files(tmp_path) == before


def test_what_a_later_version_of_this_schema_adds_survives(tmp_path: Path) -> None:
    path = filled(tmp_path, {KEY: OLD}).path(KEY)
    content = json.loads(path.read_text())
    content["note"] = "kept"
    content["entries"][KEY.entry]["note"] = "kept too"
    path.write_text(json.dumps(content))
    filled(tmp_path, {OTHER: NEW})
    found = json.loads(path.read_text())
    assert (found["note"], found["entries"][KEY.entry]["note"]) == ("kept", "kept too")


def test_the_last_staged_record_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.stage(KEY, OLD)
    store.stage(KEY, NEW)
    store.write()
    assert Store(tmp_path).load(KEY) == NEW


def test_only_missing_never_replaces(tmp_path: Path) -> None:
    filled(tmp_path, {KEY: OLD})
    store, late = Store(tmp_path), replace(KEY, entry="late")
    assert not store.stage(KEY, NEW, only_missing=True)
    assert store.stage(OTHER, NEW, only_missing=True)
    assert not store.stage(OTHER, OLD, only_missing=True)
    assert store.stage(late, NEW, only_missing=True)
    filled(tmp_path, {late: OLD})
    store.write()
    assert [Store(tmp_path).load(key) for key in (KEY, OTHER, late)] == [OLD, NEW, OLD]


def test_a_loaded_record_is_a_copy(tmp_path: Path) -> None:
    store = filled(tmp_path, {KEY: OLD})
    first = store.load(KEY)
    assert first is not None
    first.expected["accuracy"] = 0
    assert store.load(KEY) == OLD


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, {KEY: OLD})
    read: list[Path] = []
    original = document.read

    def counted(path: Path) -> dict[str, Any] | None:
        read.append(path)
        return original(path)

    monkeypatch.setattr("pytest_llminfer.baselines.store.read", counted)
    store = Store(tmp_path)
    for key in (KEY, OTHER, KEY, replace(KEY, family="none"), replace(KEY, family="none")):
        store.load(key)
    store.unused()
    assert [path.name for path in read] == ["gsm8k.json", "none.json"]


def test_unused_entries_of_the_files_in_use(tmp_path: Path) -> None:
    elsewhere = replace(KEY, family="memory")
    filled(tmp_path, {KEY: OLD, OTHER: OLD, elsewhere: OLD})
    store = Store(tmp_path)
    assert store.unused() == []
    store.load(replace(KEY, entry="missing"))
    assert store.unused() == [OTHER, KEY]
    store.used.add(OTHER)
    assert store.unused() == [KEY]
    store.stage(KEY, NEW)
    assert store.unused() == []


@pytest.mark.parametrize("content", [b"{", b'{"schema": 7}', b'{"schema": 2, "family": "gsm8k", "entries": {"x": 1}}', b"\xff"])
def test_a_broken_file_stays_as_it_is_and_the_record_staged(tmp_path: Path, content: bytes) -> None:
    store, fine = Store(tmp_path / "baselines"), replace(KEY, family="memory")
    path = store.path(KEY)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(BaselineError, match=re.escape(str(path))):
        store.load(KEY)
    assert store.stage(KEY, NEW, only_missing=True)
    assert store.stage(fine, NEW)
    assert store.unused() == []
    with pytest.raises(BaselineError, match=f"baseline file {path} "):
        store.write()
    assert path.read_bytes() == content
    assert {file.name for file in path.parent.iterdir()} == {"gsm8k.json", "memory.json"}
    assert Store(tmp_path / "baselines").load(fine) == NEW
    assert store.staged == {KEY: NEW}
    path.unlink()
    assert store.write() == [path]
    assert Store(tmp_path / "baselines").load(KEY) == NEW


@pytest.mark.parametrize("where", ["a file", "a file above", "proc"])
def test_a_directory_that_cannot_be_written_loses_nothing(tmp_path: Path, where: str) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("precious")
    store = Store({"a file": blocked, "a file above": blocked / "baselines", "proc": Path("/proc/baselines")}[where])
    staged = {KEY: OLD, OTHER: NEW, replace(KEY, family="memory"): NEW}
    for key, record in staged.items():
        store.stage(key, record)
    with pytest.raises(BaselineError, match="cannot be written: ") as caught:
        store.write()
    for path in {store.path(key) for key in staged}:
        assert f"baseline file {path} cannot be written: " in str(caught.value)
    assert blocked.read_text() == "precious"
    assert store.staged == staged


def test_a_full_disk_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baselines = tmp_path / "baselines"
    store = filled(baselines, {KEY: OLD})
    before = files(baselines)
    original = os.fsync

    def full(descriptor: int) -> None:
        if str(baselines) in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    store.stage(KEY, NEW)
    with pytest.raises(BaselineError, match=r"cannot be written: No space left on device$"):
        store.write()
    assert files(baselines) == before
    assert store.staged == {KEY: NEW}


def test_a_key_that_names_no_file_is_refused_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(BaselineError, match="model '' has no letter"):
        store.stage(replace(KEY, model=""), OLD, only_missing=True)
    assert store.write() == []
    assert store.unused() == []


def test_layers_answer_in_order_and_do_not_pass_over_what_is_broken(tmp_path: Path) -> None:
    both = replace(KEY, entry="both")
    project = filled(tmp_path / "project", {KEY: NEW, both: NEW})
    bundled = filled(tmp_path / "bundled", {OTHER: OLD, both: OLD})
    source = LayeredSource([project, bundled])
    assert [source.load(key) for key in (KEY, OTHER, both, replace(KEY, entry="none"))] == [NEW, OLD, NEW, None]
    project.path(KEY).write_text("{")
    with pytest.raises(BaselineError, match="is not JSON"):
        LayeredSource([Store(tmp_path / "project"), bundled]).load(OTHER)
