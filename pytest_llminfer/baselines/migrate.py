"""Records of schema 1 in the form of today: nothing that was recorded is lost, and nothing is guessed.

Schema 1 named an entry after the dtypes that a cell came to (``transformers-none-bf16-kv_bf16``); today it is named after those
that were asked for, and what they came to is a condition. What was asked for stands in the command that each record keeps.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_llminfer.baselines import run_history
from pytest_llminfer.baselines.document import SCHEMA, read, render, replace_file
from pytest_llminfer.baselines.entries import AUTO, Entry
from pytest_llminfer.baselines.side_files import FIELD, inside
from pytest_llminfer.errors import BaselineError
from pytest_llminfer.hardware import slug

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FAMILIES = {"memory_ledger": "memory_profile"}
"""Families that have another name today."""
RUN_HISTORY = "ledger.jsonl"
"""What ``run_history.FILE`` was called."""
OLD_NAME = "entry_of_schema_1"
"""In a record's provenance, the name under which schema 1 filed it."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAID_ARGUMENTS = ("throughput_", "serving_latency")
"""Families whose records of schema 1 hold the engine's arguments wherever there were any."""


@dataclass(frozen=True, slots=True)
class Step:
    """One file: its text today, in the place of ``sources``, which are gone then unless one of them is ``path`` itself.

    Attributes:
        path: Where it lies today.
        sources: The files that it is made of.
        text: Its content.
        names: Of its entries, before and after.
        moved: Side files that go with it into another folder.
    """

    path: Path
    sources: tuple[Path, ...]
    text: str
    names: dict[str, str]
    moved: tuple[Path, ...] = ()

    def take(self) -> None:
        """Write the file, then remove what it replaces.

        Raises:
            OSError: it cannot be written; everything is then as it was.
        """
        self.path.parent.mkdir(exist_ok=True)
        for side_file in self.moved:
            shutil.copyfile(side_file, self.path.parent / side_file.name)
        replace_file(self.path, self.text)
        for source in self.sources:
            if source != self.path:
                source.unlink()
        for side_file in self.moved:
            side_file.unlink(missing_ok=True)
        for folder in {source.parent for source in self.sources} - {self.path.parent}:
            with contextlib.suppress(OSError):  # other files of it are still to be moved
                folder.rmdir()


def plan(folder: Path) -> tuple[list[Step], list[str]]:
    """What is to be done under ``folder``, and what cannot be: a line on each file that stays as it is."""
    steps: list[Step] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*/*/*.json")):
        try:
            step = _of_document(path)
        except BaselineError as error:
            problems.append(str(error))
            continue
        if step is not None and step.path in {other.path for other in steps}:
            problems.append(f"baseline file {path} is {step.path} today, and so is another: migrate again once that is written")
        elif step is not None:
            steps.append(step)
    for model in sorted({path.parent for name in (RUN_HISTORY, run_history.FILE) for path in folder.glob(f"*/*/{name}")}):
        # Past runs are of accuracy: where families were recorded by different words, its own count.
        families = sorted((step for step in steps if step.sources[0].parent == model), key=lambda step: step.path.stem == "gsm8k")
        names = {old: new for step in families for old, new in step.names.items()}
        today = families[-1].path.parent if families else model
        try:
            if (history := _of_run_history(model, today, names)) is not None:
                steps.append(history)
        except (OSError, ValueError) as error:
            problems.append(f"run history of {model} cannot be read: {error}")
    return steps, problems


def _of_document(path: Path) -> Step | None:
    document = read(path, oldest=1)
    if document is None or (document["schema"] == SCHEMA and path.stem not in FAMILIES):
        return None
    folder = _folder_today(path.parent, document["entries"])
    target = folder / f"{FAMILIES.get(path.stem, path.stem)}.json"
    entries, names = document["entries"], {name: name for name in document["entries"]}
    if document["schema"] < SCHEMA:
        names = _new_names(entries)
        if len(set(names.values())) < len(names):
            raise BaselineError(f"baseline file {path} holds two entries that would have one name: remove one of them")
        entries = {names[name]: _migrated(name, entry, path.stem) for name, entry in entries.items()}
    sources = (path,)
    if target != path and (there := read(target, oldest=1)) is not None:
        if there["schema"] < SCHEMA:
            raise BaselineError(f"baseline file {path} is {target} today, of schema 1 too: migrate again once that is written")
        if twice := sorted(entries.keys() & there["entries"].keys()):
            raise BaselineError(f"baseline file {path} is {target} today, and both hold {twice[0]!r}: remove one of them")
        entries = {**there["entries"], **entries}
    moved = tuple(_side_files(path.parent, document["entries"])) if target.parent != path.parent else ()
    text = render({**document, "schema": SCHEMA, "family": target.stem, "entries": entries}) + "\n"
    return Step(target, sources, text, names, moved)


def _side_files(model: Path, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    for entry in entries.values():
        if isinstance(reference := entry["expected"].get(FIELD), dict) and (path := inside(model, reference)).is_file():
            yield path


def _folder_today(model: Path, entries: Mapping[str, Mapping[str, Any]]) -> Path:
    """A snapshot was filed under its commit, and is today under its repository, where the command of a record names that."""
    if not _COMMIT.fullmatch(model.name):
        return model
    found = {
        match[1]
        for entry in entries.values()
        for match in re.finditer(rf"models--([\w.-]+)/snapshots/{model.name}", _command(entry))
    }
    return model.with_name(slug(found.pop().replace("--", "/", 1))) if len(found) == 1 else model


def _new_names(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of two records that were asked for in the same words the later has that name, and an earlier one that of its dtypes."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(entries, key=lambda name: (str(entries[name]["provenance"].get("date", "")), name), reverse=True):
        try:
            resolved = Entry.parse(name)
        except ValueError:
            names[name] = name
            continue
        together = _recorded_together(name, entries)
        words = _words(_command(entries[name]))
        asked = replace(
            resolved,
            dtype=_asked(words, "dtype", resolved.dtype, {other.dtype for other in together}),
            kv_dtype=_asked(words, "kv-dtype", resolved.kv_dtype, {other.kv_dtype for other in together}),
        )
        names[name] = str(asked) if str(asked) not in taken else name
        taken.add(names[name])
    return names


def _recorded_together(name: str, entries: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    """The entries that the command of this one recorded for cells that differ from it in dtypes alone, and itself."""
    this, found = Entry.parse(name), []
    for other, entry in entries.items():
        with contextlib.suppress(ValueError):
            parsed = Entry.parse(other)
            if _command(entry) == _command(entries[name]) and parsed == replace(this, dtype=parsed.dtype, kv_dtype=parsed.kv_dtype):
                found.append(parsed)
    return found


def _command(entry: Mapping[str, Any]) -> str:
    return str(entry["provenance"].get("command", ""))


def _asked(command: list[str], option: str, resolved: str, together: set[str]) -> str:
    """What a command said of a dtype that came to ``resolved``; ``together``: what the dtypes of its other cells came to.

    ``auto`` and a dtype by its name, that came to the same, were one entry: it is then that of ``auto``.
    """
    said: list[str] = []
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in (f"--{option}", f"--llminfer-{option}"):
            said = [one.strip() for one in (value if equals else following).split(",")]
    if len(said) == 1:
        return said[0] or AUTO
    return resolved if resolved in said and (AUTO not in said or together - set(said)) else AUTO


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _migrated(name: str, entry: Mapping[str, Any], family: str) -> dict[str, Any]:
    known: dict[str, Any] = {}
    try:
        resolved = Entry.parse(name)
    except ValueError:
        pass
    else:
        known = {"dtype": resolved.dtype, "kv_dtype": resolved.kv_dtype}
    if family.startswith(_SAID_ARGUMENTS):
        known["engine_args"] = {}
    return {
        **entry,
        "conditions": {**known, **entry["conditions"]},
        "provenance": {**entry["provenance"], OLD_NAME: name},
    }


def _of_run_history(model: Path, today: Path, names: Mapping[str, str]) -> Step | None:
    """The past runs of a model under the entries' names of today, in the file that is read today."""
    target = today / run_history.FILE
    sources = [path for path in dict.fromkeys((model / RUN_HISTORY, model / run_history.FILE, target)) if path.is_file()]
    before = [line for path in sources for line in path.read_text(encoding="utf-8").splitlines()]
    after = list(_renamed(before, names))
    if sources == [target] and before == after:
        return None
    return Step(target, tuple(sources), "".join(f"{line}\n" for line in after), {})


def _renamed(lines: list[str], names: Mapping[str, str]) -> Iterator[str]:
    for line in lines:
        said = json.loads(line) if line.strip() else {}
        entry = said.get("entry") if isinstance(said, dict) else None
        if not isinstance(entry, str) or (new := _today(entry, names)) == entry:
            yield line
        else:
            yield json.dumps({**said, "entry": new}, sort_keys=True, ensure_ascii=False)


def _today(entry: str, names: Mapping[str, str]) -> str:
    """The name of an entry with the words of its parallelism: its record has the name without them."""
    try:
        parsed = Entry.parse(entry)
        plain = Entry.parse(names.get(str(replace(parsed, words=())), str(replace(parsed, words=()))))
    except ValueError:
        return entry
    return str(replace(plain, words=parsed.words))
