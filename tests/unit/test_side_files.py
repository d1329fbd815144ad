"""Side files: the same bytes every time, found again by hash, and gone when nothing names them."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import numpy as np
import pytest

from pytest_llminfer.baselines import side_files
from pytest_llminfer.baselines.record import BaselineKey, Record
from pytest_llminfer.baselines.store import Store
from pytest_llminfer.errors import BaselineError

KEY = BaselineKey("any", "reference", "divergence", "transformers-none-auto-kv_auto")


def arrays(value: float = 0.5) -> dict[str, np.ndarray]:
    return {"logprobs": np.full((4, 3), value, np.float32), "ids": np.arange(12, dtype=np.int32)}


def test_arrays_come_back_and_the_bytes_do_not_depend_on_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    content = side_files.pack(arrays())
    for name, array in arrays().items():
        found = side_files.unpack(content)[name]
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert side_files.pack(arrays()) == content
    assert side_files.pack(arrays(0.25)) != content


@pytest.mark.fault("files", "arrays beside a record that hold pickled objects", "refused in one line, never executed")
def test_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        side_files.pack({"objects": np.array([{}], dtype=object)})


def test_a_side_file_is_found_in_the_first_folder_that_has_it(tmp_path: Path) -> None:
    content = side_files.pack(arrays())
    reference = side_files.refer("divergence", content)
    side_files.write(tmp_path / "second" / reference["name"], content)
    assert side_files.load(reference, [tmp_path / "first", tmp_path / "second"]) == content


@pytest.mark.fault("files", "arrays beside a record are missing or were altered", "one line that names the file")
def test_missing_and_altered_are_one_clear_line_each(tmp_path: Path) -> None:
    content = side_files.pack(arrays())
    reference = side_files.refer("divergence", content)
    with pytest.raises(BaselineError, match=rf"^side file {reference['name']}.* is missing; restore it .*$"):
        side_files.load(reference, [tmp_path])
    (tmp_path / reference["name"]).write_bytes(content[:-1] + b"x")
    with pytest.raises(BaselineError, match=r"^side file .* is not what was recorded \(its sha256 differs\); restore it .*$"):
        side_files.load(reference, [tmp_path])


@pytest.mark.fault("files", "the disk is full when arrays are written", "the record is not made, and the session says so")
def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BaselineError, match=r"side file .* cannot be written"):
        side_files.write(tmp_path / "file" / "a.npz", b"content")


def record(store: Store, files: side_files.SideFiles, value: float, key: BaselineKey = KEY) -> str:
    content = side_files.pack(arrays(value))
    reference = side_files.refer("divergence", content)
    expected = {"side_file": reference}
    files.take({"name": reference["name"], "content": base64.b64encode(content).decode()})
    files.write(store.path(key), expected)
    store.stage(key, Record(expected, {}, {}))
    store.write()
    return reference["name"]


def test_a_replaced_record_takes_its_side_file_along_and_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = BaselineKey("any", "reference", "divergence", "transformers-nf4-auto-kv_auto")
    folder = store.path(KEY).parent
    first, kept = record(store, side_files.SideFiles(), 0.5), record(store, side_files.SideFiles(), 0.25, other)
    (folder / "divergence-of-somebody.npz").touch()
    files = side_files.SideFiles()
    second = record(store, files, 0.75)
    assert {path.name for path in folder.glob("*.npz")} == {first, kept, second, "divergence-of-somebody.npz"}
    assert files.settle() == ""
    assert {path.name for path in folder.glob("*.npz")} == {kept, second, "divergence-of-somebody.npz"}


def test_a_side_file_that_two_records_name_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = BaselineKey("any", "reference", "divergence", "vllm-none-auto-kv_auto")
    files = side_files.SideFiles()
    shared = record(store, files, 0.5)
    assert record(store, files, 0.5, other) == shared
    record(store, files, 0.75)
    files.settle()
    assert (store.path(KEY).parent / shared).is_file()


ODD_NAMES = (
    "../../../victim.txt",
    "/etc/victim.txt",
    "folder/divergence-0123456789ab.npz",
    "..",
    "",
    "divergence-0123456789ab.npz\n",
    "divergence-0123456789AB.npz",
    "divergence-0123456789ab.npz/../../victim.txt",
    ".hidden-0123456789ab.npz",
    None,
    5,
)


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.fault(
    "files",
    "a record names arrays by an absolute, relative, hidden or odd path",
    "refused; no file outside the folder is read or removed",
)
def test_no_name_in_a_record_leads_out_of_its_folder(tmp_path: Path, name: object) -> None:
    store, files = Store(tmp_path / "baselines"), side_files.SideFiles()
    folder = store.path(KEY).parent
    victims = [tmp_path / "victim.txt", folder / "victim.txt"]
    record(store, files, 0.5)
    for victim in victims:
        victim.write_text("mine")
    store.stage(KEY, Record({"side_file": {"name": name, "sha256": "0" * 64}}, {}, {}))
    store.write()
    with pytest.raises(BaselineError, match="is no name of a side file"):
        side_files.load({"name": name, "sha256": "0" * 64}, [folder])
    with pytest.raises(BaselineError, match="is no name of a side file"):
        record(Store(tmp_path / "baselines"), files, 0.75)
    files.settle()
    assert [victim.read_text() for victim in victims] == ["mine", "mine"]


@pytest.mark.fault("files", "a link lies where arrays should", "not followed")
def test_a_link_in_the_place_of_a_side_file_is_not_followed(tmp_path: Path) -> None:
    content = side_files.pack(arrays())
    reference = side_files.refer("divergence", content)
    (tmp_path / "elsewhere").write_bytes(content)
    (tmp_path / reference["name"]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BaselineError, match="is a link, which is not followed"):
        side_files.load(reference, [tmp_path])
