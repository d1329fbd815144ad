from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.datasets.fingerprint import fingerprint, items_sha256, prompts_sha256
from pytest_llminfer.datasets.gsm8k import Problem, gold
from pytest_llminfer.datasets.load import Dataset, load
from pytest_llminfer.errors import DatasetError

ROWS: Any = [
    {"question": "A hen lays 3 eggs a day. How many in 6 days?", "answer": "3 * 6 = <<3*6=18>>18\n#### 18"},
    {"question": "Two pens cost $2,500. What does one cost?", "answer": "2,500 / 2 = 1,250\n#### 1,250"},
    {"id": "own", "question": "Five less than three?", "answer": "#### -2"},
    {"id": 7, "question": "Half of one?", "answer": "#### 0.5"},
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def gsm8k_file() -> Path:
    given_path = os.environ.get("LLMINFER_GSM8K")
    beside = Path(__file__).resolve().parents[3] / "shared/data/gsm8k/test.jsonl"
    path = Path(given_path) if given_path else beside
    if not path.is_file():
        pytest.skip(f"GSM8K's test split is not at {path}; set LLMINFER_GSM8K to its path")
    return path


def test_every_row_of_gsm8ks_test_split_loads() -> None:
    dataset = load(str(gsm8k_file()))
    golds = [gold(problem) for problem in dataset.problems]
    assert len(golds) == len({problem.id for problem in dataset.problems}) == 1319
    assert golds[:3] == [18, 3, 70000]
    assert 1_450_000 in golds


def test_the_bundled_problems_load() -> None:
    dataset = load("synthetic")
    assert dataset.name == "synthetic"
    assert len(dataset.problems) >= 300
    assert all(gold(problem) is not None for problem in dataset.problems)


def test_a_file_in_gsm8ks_format_loads(tmp_path: Path) -> None:
    dataset = load(write(tmp_path / "mine.jsonl", [*ROWS[:2], "", *ROWS[2:]]))
    assert dataset.name == "mine"
    assert [gold(problem) for problem in dataset.problems] == [18, 1250, -2, gold(Problem("", "", "#### 0.5"))]
    assert [problem.id for problem in dataset.problems[2:]] == ["own", "7"]


def test_parquet_and_jsonl_are_the_same_dataset(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS[:2]), tmp_path / "test.parquet")
    one, other = load(write(tmp_path / "test.jsonl", ROWS[:2])), load(str(tmp_path / "test.parquet"))
    assert one == other


def test_a_made_id_belongs_to_the_question_not_to_its_place(tmp_path: Path) -> None:
    one = load(write(tmp_path / "a.jsonl", ROWS[:2])).problems
    other = load(write(tmp_path / "b.jsonl", ROWS[1::-1])).problems
    assert {problem.question: problem.id for problem in one} == {problem.question: problem.id for problem in other}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "line 2: not JSON"),
        ('"text"', "line 2: a row must be a JSON object, not str"),
        ("[" * 100_000, "line 2: not JSON"),
        ({"answer": "#### 1"}, "line 2: no text in 'question'"),
        ({"question": " ", "answer": "#### 1"}, "line 2: no text in 'question'"),
        ({"question": "Why?"}, "line 2: no text in 'answer'"),
        ({"question": "Why?", "answer": 18}, "line 2: no text in 'answer'"),
        ({"question": "Why?", "answer": "eighteen"}, "line 2: no '#### <number>' in 'answer'"),
        ({"question": "Why?", "answer": "#### many"}, "line 2: no '#### <number>' in 'answer'"),
        ({**ROWS[0]}, "is already that of .*line 1"),
        ({"id": True, "question": "Why?", "answer": "#### 1"}, "'id' must be text or a whole number"),
        ({"id": "", "question": "Why?", "answer": "#### 1"}, "'id' must be text or a whole number"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", [ROWS[0], row])
    with pytest.raises(DatasetError, match=message) as raised:
        load(path)
    assert path in str(raised.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"question": "\xff\xfe"}\n')
    with pytest.raises(DatasetError, match="line 1: not JSON"):
        load(str(path))


def test_an_empty_file_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no rows"):
        load(write(tmp_path / "empty.jsonl", []))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no file .*none\.jsonl"):
        load(str(tmp_path / "none.jsonl"))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DatasetError, match="valid: synthetic, openai/gsm8k"):
        load("gsm9k")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DatasetError, match=r"x\.parquet is no readable Parquet file"):
        load(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(("name", "package"), [("openai/gsm8k", "datasets"), ("x.parquet", "pyarrow")])
def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "x.parquet").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=f"pip install {package}"):
        load(name)


def test_a_hub_that_cannot_be_read_is_a_dataset_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("datasets")

    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    vars(module)["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(DatasetError, match=r"cannot be read from the hub \(no route\); give a local"):
        load("openai/gsm8k")


def test_the_hub_is_asked_for_the_main_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, module = [], type(sys)("datasets")

    def load_dataset(*args: Any, **kwargs: Any) -> list[object]:
        asked.append((args, kwargs))
        return ROWS[:2]

    vars(module)["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert len(load("openai/gsm8k", split="train").problems) == 2
    assert asked == [(("openai/gsm8k", "main"), {"split": "train"})]


def many(count: int) -> tuple[Any, ...]:
    return tuple(Problem(f"p{number}", f"question {number}", f"#### {number}") for number in range(count))


def dataset(problems: Any) -> Dataset:
    return Dataset("made", problems, items_sha256(problems))


def test_the_order_is_a_permutation_that_the_seed_fixes() -> None:
    problems = many(200)
    ordered = dataset(problems).ordered(1)
    assert set(ordered) == set(problems)
    assert ordered == dataset(problems[::-1]).ordered(1)
    assert ordered != dataset(problems).ordered(2)
    assert ordered != problems


def test_the_order_is_the_same_on_every_machine() -> None:
    assert [problem.id for problem in dataset(many(6)).ordered(20260101)] == ["p3", "p0", "p1", "p2", "p5", "p4"]


def test_the_first_questions_are_a_random_sample() -> None:
    picks = [int(problem.id[1:]) for seed in range(200) for problem in dataset(many(100)).ordered(seed)[:5]]
    assert 40 <= sum(picks) / len(picks) <= 59
    assert len(set(picks)) > 95


def test_the_fingerprint_sees_every_change() -> None:
    first, *rest = many(3)
    base = items_sha256((first, *rest))
    assert base != items_sha256(rest)
    assert base != items_sha256((*rest, first))
    assert base != items_sha256((Problem(first.id, first.question, "#### 9"), *rest))


@given(st.lists(st.text()), st.lists(st.text()))
def test_different_parts_have_different_fingerprints(one: list[str], other: list[str]) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


def test_prompts_as_text_and_as_ids_are_different_prompts() -> None:
    assert prompts_sha256(["1,2"]) != prompts_sha256([[1, 2]])
    assert prompts_sha256([[1, 2], [3]]) != prompts_sha256([[1], [2, 3]])
    assert prompts_sha256([[1, 2]]) == prompts_sha256([(1, 2)])


def test_loading_imports_no_framework() -> None:
    heavy = {"torch", "numpy", "datasets", "pyarrow"}
    code = f"import sys, pytest_llminfer.datasets.load as d; d.load('synthetic'); print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
