"""Where records are kept: a directory of JSON files, read lazily, written once and only when asked to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llminfer.baselines.document import empty, locked, read, render, replace_file
from pytest_llminfer.baselines.record import BaselineKey, Record
from pytest_llminfer.errors import BaselineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    _Staged = dict[BaselineKey, tuple[Record, bool]]


class BaselineSource(Protocol):
    """Where expectations come from: stored files, or a second live environment."""

    def load(self, key: BaselineKey) -> Record | None:
        """The record of ``key``; None where there is none."""


class Store:
    """The records under ``directory``. Nothing is written before :meth:`write`.

    used: every key that was asked for or staged. A controller adds what its workers used.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.used: set[BaselineKey] = set()
        self._entries: dict[Path, dict[str, Any]] = {}
        self._staged: _Staged = {}

    def path(self, key: BaselineKey) -> Path:
        """The file that holds, or would hold, the record of ``key``."""
        return self.directory / key.path

    def load(self, key: BaselineKey) -> Record | None:
        """The record of ``key`` as it was when its file was first read; None where there is none.

        Raises:
            BaselineError: the file is there and cannot be used.
        """
        self.used.add(key)
        entry = self._read(key).get(key.entry)
        return None if entry is None else _record(entry)

    def stage(self, key: BaselineKey, record: Record, *, only_missing: bool = False) -> bool:
        """Keep ``record`` for :meth:`write`, in the place of one staged before; whether it was taken.

        With ``only_missing`` it is not taken where there already is one, and a record that another session writes in the
        meantime stays. A file that cannot be read is reported by :meth:`write`, so that no record is lost on the way.

        Raises:
            BaselineError: ``key`` names no file.
        """
        self.path(key)
        self.used.add(key)
        if only_missing and (key in self._staged or self._on_disk(key)):
            return False
        self._staged[key] = (record, only_missing)
        return True

    def write(self) -> list[Path]:
        """Merge what is staged into what is on disk now; the files that changed, sorted.

        Other entries of a file are kept. Each file is replaced as a whole, or left as it was.

        Raises:
            BaselineError: some files could not be written. The others are, and what is missing stays staged.
        """
        groups: dict[Path, _Staged] = {}
        for key, staged in sorted(self._staged.items(), key=lambda item: item[0]):
            groups.setdefault(self.path(key), {})[key] = staged
        written, problems = [], []
        for path, group in groups.items():
            try:
                if _merge(path, group):
                    written.append(path)
            except BaselineError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"baseline file {path} cannot be written: {error.strerror or error}")
            else:
                self._staged = {key: staged for key, staged in self._staged.items() if key not in group}
                self._entries.pop(path, None)
        if problems:
            raise BaselineError("; ".join(problems))
        return sorted(written)

    def unused(self) -> list[BaselineKey]:
        """The entries, in the files that the used keys belong to, that no test asked for."""
        found: set[BaselineKey] = set()
        for key in self.used:
            if self._on_disk(key) is not None:
                found.update(replace(key, entry=entry) for entry in self._read(key))
        return sorted(found - self.used)

    def _read(self, key: BaselineKey) -> dict[str, Any]:
        path = self.path(key)
        if path not in self._entries:
            document = read(path)
            self._entries[path] = {} if document is None else document["entries"]
        return self._entries[path]

    def _on_disk(self, key: BaselineKey) -> bool | None:
        """Whether the entry is there; None where the file cannot be used."""
        try:
            return key.entry in self._read(key)
        except BaselineError:
            return None

    @property
    def staged(self) -> dict[BaselineKey, Record]:
        """What waits to be written, or could not be."""
        return {key: record for key, (record, _) in self._staged.items()}


class LayeredSource:
    """The first of several sources that has a record: the project's own baselines, then those that come with the package.

    A source that raises is not skipped: what is broken must be seen.
    """

    def __init__(self, sources: Sequence[BaselineSource]) -> None:
        self.sources = tuple(sources)

    def load(self, key: BaselineKey) -> Record | None:
        """The record of ``key`` in the first source that has one.

        Raises:
            BaselineError: a file on the way cannot be used.
        """
        for source in self.sources:
            if (record := source.load(key)) is not None:
                return record
        return None


def _merge(path: Path, staged: _Staged) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        document = read(path) or empty(path.stem)
        before = render(document)
        for key, (record, only_missing) in staged.items():
            if not (only_missing and key.entry in document["entries"]):
                document["entries"][key.entry] = _entry(record)
        if (after := render(document)) == before:
            return False
        replace_file(path, after + "\n")
        return True


def _entry(record: Record) -> dict[str, Any]:
    return {"expected": record.expected, "conditions": record.conditions, "provenance": record.provenance}


def _record(entry: dict[str, Any]) -> Record:
    return Record(entry["expected"], entry["conditions"], entry["provenance"])
