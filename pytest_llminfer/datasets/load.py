"""Where problems come from: the bundled synthetic set, GSM8K on the Hugging Face hub, or a local file in its format."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.datasets.fingerprint import fingerprint, items_sha256
from pytest_llminfer.datasets.gsm8k import Problem
from pytest_llminfer.datasets.readings import extract_gold
from pytest_llminfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SYNTHETIC = "synthetic"
GSM8K = "openai/gsm8k"
_BUNDLED = Path(__file__).resolve().parent / "synthetic.jsonl"
_FORMAT = 'each row needs "question" and "answer" as text, the answer ending in a line "#### <number>"'


@dataclass(frozen=True, slots=True)
class Dataset:
    """Problems with distinct ids, in the order of their source.

    Attributes:
        name: ``synthetic``, ``openai/gsm8k:SPLIT``, or the name of a file without its suffix.
        problems: At least one.
        sha256: Hash over the ids, questions and answers in this order, in hexadecimal digits.
    """

    name: str
    problems: tuple[Problem, ...]
    sha256: str

    def ordered(self, seed: int) -> tuple[Problem, ...]:
        """A fixed permutation, so that the first n are a random sample and a longer run contains a shorter one.

        Problems are sorted by sha256 of seed and id: the same on every machine and Python, whatever the order of the file.
        """
        return tuple(sorted(self.problems, key=lambda problem: fingerprint((str(seed), problem.id))))


def load(name_or_path: str, *, split: str = "test") -> Dataset:
    """The dataset ``synthetic``, ``openai/gsm8k``, or the file at a path that ends in .jsonl or .parquet.

    ``split`` chooses among those on the hub; the bundled set and files have one, which is called test.

    Raises:
        DatasetError: no such dataset or file, or a row that is not in GSM8K's format; the message names the row.
    """
    if name_or_path == SYNTHETIC:
        return _dataset(SYNTHETIC, _read_jsonl(_BUNDLED))
    if name_or_path == GSM8K:
        return _dataset(f"{GSM8K}:{split}", _read_hub(split))
    path = Path(name_or_path).expanduser()
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise DatasetError(f"no dataset {name_or_path!r}; valid: {SYNTHETIC}, {GSM8K}, or the path of a .jsonl or .parquet file")
    if not path.is_file():
        raise DatasetError(
            f"there is no file {path.absolute()}; valid: {SYNTHETIC}, {GSM8K}, or the path of a .jsonl or .parquet file"
        )
    return _dataset(path.stem, readers[path.suffix](path))


def _dataset(name: str, rows: Iterable[tuple[str, object]]) -> Dataset:
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for place, row in rows:
        problem = _problem(place, row)
        if problem.id in seen:
            raise DatasetError(f"{place}: id {problem.id!r} is already that of {seen[problem.id]}; every problem needs its own")
        seen[problem.id] = place
        problems.append(problem)
    if not problems:
        raise DatasetError(f"the dataset {name} has no rows; {_FORMAT}")
    return Dataset(name, tuple(problems), items_sha256(problems))


def _problem(place: str, row: object) -> Problem:
    if not isinstance(row, dict):
        raise DatasetError(f"{place}: a row must be a JSON object, not {type(row).__name__}; {_FORMAT}")
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DatasetError(f"{place}: no text in {key!r}; {_FORMAT}")
    if extract_gold(row["answer"]) is None:
        raise DatasetError(f"{place}: no '#### <number>' in 'answer', or one that goes on as something else; {_FORMAT}")
    return Problem(_id(place, row), row["question"], row["answer"])


def _id(place: str, row: dict[str, Any]) -> str:
    """The row's own id, or one made from the question, so that it does not depend on the place in the file."""
    given = row.get("id")
    if given is None:
        return "q-" + hashlib.sha256(row["question"].encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise DatasetError(f"{place}: 'id' must be text or a whole number, got {given!r}; leave it out to have one made")
    return str(given)


def _read_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", _parse(path, number, line)
    except OSError as error:
        raise DatasetError(f"the dataset {path} cannot be read: {error.strerror}; check the path and its permissions") from error


def _parse(path: Path, number: int, line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}, line {number}: not JSON ({error}); {_FORMAT}") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise DatasetError(f"reading {path} needs pyarrow: pip install pyarrow, or give a .jsonl file") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise DatasetError(f"{path} is no readable Parquet file ({error}); give GSM8K's own, or a .jsonl file") from error
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _read_hub(split: str) -> Iterator[tuple[str, object]]:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise DatasetError(f"reading {GSM8K} needs the package datasets: pip install datasets, or give a .jsonl file") from None
    try:
        rows = list(load_dataset(GSM8K, "main", split=split))
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"{GSM8K}, split {split!r}, cannot be read from the hub ({first}); give a local .jsonl file") from error
    return ((f"{GSM8K}, {split}, row {number}", row) for number, row in enumerate(rows, start=1))
