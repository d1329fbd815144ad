"""The synthetic problems: deterministic, right in every step, and split so that no held-out text can be trained on."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.paths import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

BUNDLED = REPOSITORY / "pytest_llminfer" / "datasets" / "synthetic.jsonl"
STATEMENT = re.compile(r"(\d+) ([-+*/]) (\d+)(?: \+ (\d+))? = (\d+)")


@pytest.fixture(scope="module")
def synthetic() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(REPOSITORY / "tools"), *sys.path])
        yield importlib.import_module("synthetic_problems")


@pytest.fixture(scope="module")
def training(synthetic: ModuleType) -> list[Any]:
    stream = synthetic.stream("training", seed="unit test", difficulty=synthetic.DIFFICULTIES["medium"])
    return list(islice(stream, 20_000))


@pytest.fixture(scope="module")
def bundled() -> list[dict[str, str]]:
    return [json.loads(line) for line in BUNDLED.read_text(encoding="utf-8").splitlines()]


def first_byte(question: str) -> int:
    return hashlib.sha256(question.encode("utf-8")).digest()[0]


def assert_solution_is_right(answer: str) -> None:
    *steps, final = answer.split("\n")
    assert steps
    for step in steps:
        (match,) = STATEMENT.finditer(step)
        left, operator, right, third, stated = match.groups()
        a, b, result = int(left), int(right), int(stated)
        assert third is None or operator == "+"
        if operator == "/":
            assert a % b == 0, step
            assert a // b == result, step
        else:
            expected = {"+": a + b + int(third or 0), "-": a - b, "*": a * b}[operator]
            assert expected == result, step
    assert re.fullmatch(r"#### \d+", final)
    assert final == f"#### {result}"


def test_equal_seeds_give_equal_streams(synthetic: ModuleType) -> None:
    def draw(seed: int) -> list[Any]:
        return list(islice(synthetic.stream("training", seed=seed, difficulty=synthetic.DIFFICULTIES["hard"]), 500))

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_every_statement_of_a_solution_is_right(training: list[Any], bundled: list[dict[str, str]]) -> None:
    for answer in [*(problem.answer for problem in training), *(record["answer"] for record in bundled)]:
        assert_solution_is_right(answer)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("So 2 + 3 = 6 pears.\n#### 6", "2 \\+ 3 = 6"),
        ("So 7 / 2 = 3 pears.\n#### 3", "7 / 2 = 3"),
        ("So 2 + 3 = 5 pears.\n#### 6", "#### 6"),
        ("So 1 + 2 + 3 = 5.\n#### 5", "1 \\+ 2 \\+ 3 = 5"),
    ],
)
def test_a_wrong_solution_is_noticed(wrong: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        assert_solution_is_right(wrong)


def test_problems_have_two_to_four_steps(training: list[Any], synthetic: ModuleType) -> None:
    lengths = {len(problem.answer.split("\n")) - 1 for problem in training}
    assert lengths == {2, 3, 4}
    assert len(synthetic.FAMILIES) >= 30


def test_bundled_ids_are_stable_and_texts_distinct(bundled: list[dict[str, str]]) -> None:
    assert [record["id"] for record in bundled] == [f"syn-{number:04d}" for number in range(1000)]
    assert len({record["question"] for record in bundled}) == 1000
    assert {tuple(record) for record in bundled} == {("id", "question", "answer")}


def test_bundled_texts_are_all_on_the_test_side(bundled: list[dict[str, str]]) -> None:
    assert {first_byte(record["question"]) for record in bundled} == {2, 3}


def test_training_stream_holds_no_held_out_text(training: list[Any], bundled: list[dict[str, str]]) -> None:
    assert min(first_byte(problem.question) for problem in training) >= 4
    assert not {problem.question for problem in training} & {record["question"] for record in bundled}


def test_validation_side_is_apart_from_test_side(synthetic: ModuleType, bundled: list[dict[str, str]]) -> None:
    validation = synthetic.held_out_set("validation", 100, seed=3, difficulty=synthetic.DIFFICULTIES["easy"])
    assert len({problem.question for problem in validation}) == 100
    assert {first_byte(problem.question) for problem in validation} <= {0, 1}
    assert not {problem.question for problem in validation} & {record["question"] for record in bundled}


def test_the_fixed_seed_gives_the_bundled_file(synthetic: ModuleType) -> None:
    assert synthetic.bundled_lines().encode("utf-8") == BUNDLED.read_bytes()
