from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_llminfer.datasets import few_shot
from pytest_llminfer.datasets.few_shot import load_examples
from pytest_llminfer.datasets.gsm8k import Problem
from pytest_llminfer.datasets.load import load
from pytest_llminfer.datasets.prompts import FORMS, ZERO_SHOT, PromptForm
from pytest_llminfer.errors import DatasetError
from tests.support.paths import REPOSITORY

FIVE = FORMS["5-shot"]


def solved(count: int) -> tuple[Any, ...]:
    return tuple(Problem(f"p{number}", f"What is {number}?", f"It is {number}.\n#### {number}") for number in range(count))


def write(path: Path, problems: tuple[Problem]) -> str:
    path.write_text("".join(json.dumps({"question": each.question, "answer": each.answer}) + "\n" for each in problems))
    return str(path)


def test_the_default_is_a_chat_without_examples() -> None:
    default = next(iter(FORMS.values()))
    assert (str(default), default.chat, default.shots, default.stop) == ("zero-shot@1", True, 0, ())
    assert default.word("How many?") == ZERO_SHOT.format(question="How many?")


def test_five_shot_is_the_published_text() -> None:
    text = FIVE.word("How many?", solved(5))
    assert text.startswith("Question: What is 0?\nAnswer: It is 0.\n#### 0\n\nQuestion: What is 1?\n")
    assert text.endswith("#### 4\n\nQuestion: How many?\nAnswer:")
    assert text.count("Question:") == 6
    assert not FIVE.chat


def test_only_the_first_five_are_shown() -> None:
    assert FIVE.word("How many?", solved(9)) == FIVE.word("How many?", solved(5))
    assert FIVE.conditions(solved(9)) == FIVE.conditions(solved(5))


@pytest.mark.parametrize("count", [0, 4])
def test_too_few_examples_are_refused(count: int) -> None:
    for ask in (FIVE.conditions, lambda shots: FIVE.word("How many?", shots)):
        with pytest.raises(DatasetError, match=f"5-shot needs examples: 5 solved problems, and there are {count}"):
            ask(solved(count))


def test_a_question_may_hold_braces() -> None:
    for form in FORMS.values():
        assert "{0} of {question} {" in form.word("{0} of {question} {", solved(5))


def test_conditions_tell_forms_and_examples_apart() -> None:
    base = FIVE.conditions(solved(5))
    assert base["prompt_form"] == "5-shot@2"
    assert base["stop"] == ["Question:", "</s>", "<|im_end|>"]
    assert base["examples_sha256"] != FIVE.conditions(solved(6)[1:])["examples_sha256"]
    assert base["examples_sha256"] != FIVE.conditions(solved(5)[::-1])["examples_sha256"]
    assert FORMS["zero-shot"].conditions() == FORMS["zero-shot"].conditions(solved(5))
    assert FORMS["zero-shot"].conditions()["prompt_form"] == "zero-shot@1"
    assert json.loads(json.dumps(base)) == base


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (" It is 7.\n#### 7", (" It is 7.\n#### 7", False)),
        (" It is 7.\n#### 7\n\nQuestion: What is 8?\nAnswer: 8\n#### 8", (" It is 7.\n#### 7\n\n", True)),
        ("#### 7</s>Question: 8", ("#### 7", True)),
        ("#### 7<|im_end|>", ("#### 7", True)),
        ("Question:", ("", True)),
        ("question: 7", ("question: 7", False)),
        ("", ("", False)),
    ],
)
def test_an_answer_ends_before_the_first_stop(text: str, read: tuple[str, bool]) -> None:
    assert FIVE.read(text) == read


@given(st.text(), st.text())
@example("a", "")
def test_what_follows_a_stop_does_not_matter(text: str, more: str) -> None:
    answer, stopped = FIVE.read(text)
    assert FIVE.read(f"{answer}Question:{more}") == (answer, True)
    assert text.startswith(answer)
    assert stopped == (answer != text)
    assert FORMS["zero-shot"].read(f"{text}Question:{more}") == (f"{text}Question:{more}", False)


def test_forms_are_plain_values() -> None:
    copy = PromptForm(FIVE.name, FIVE.version, chat=False, question=FIVE.question, example=FIVE.example, shots=5, stop=FIVE.stop)
    assert copy == FIVE
    assert hash(copy) == hash(FIVE)
    assert list(FORMS) == ["zero-shot", "5-shot"]


def test_the_bundled_examples_are_of_the_validation_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "tools"), *sys.path])
    tools = importlib.import_module("synthetic_problems")
    drawn = tools.held_out_set("validation", 5, seed="shots", difficulty=tools.DIFFICULTIES[tools.BUNDLED_DIFFICULTY])
    bundled = load_examples("synthetic", shots=5, asked=load("synthetic").problems)
    assert [(each.question, each.answer) for each in bundled] == [(each.question, each.answer) for each in drawn]
    assert {tools.side_of(each.question) for each in bundled} == {"validation"}


def test_a_file_has_its_examples_beside_it(tmp_path: Path) -> None:
    asked = write(tmp_path / "test.jsonl", solved(9)[6:])
    with pytest.raises(DatasetError, match=r"^5-shot needs examples: there is no file .*train\.jsonl; put solved problems there"):
        load_examples(asked, shots=5)
    write(tmp_path / "train.jsonl", solved(6))
    found = load_examples(asked, shots=5, asked=load(asked).problems)
    assert [each.question for each in found] == [each.question for each in solved(5)]


def test_zero_shot_reads_nothing(tmp_path: Path) -> None:
    assert load_examples(str(tmp_path / "none.jsonl"), shots=0) == ()


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (solved(4), "^5-shot needs examples: 5 solved problems, and .*test.jsonl has 4"),
        (
            (*solved(4), Problem("p", "What  is\n9?", "#### 9")),
            r"^5-shot needs examples that are not asked: q-\w+ is a question of ",
        ),
        ((), "^5-shot needs examples: the dataset train has no rows"),
    ],
)
def test_examples_that_will_not_do_are_refused(tmp_path: Path, examples: Any, message: str) -> None:
    asked = write(tmp_path / "test.jsonl", (Problem("p", "What is 9?", "#### 9"),))
    write(tmp_path / "train.jsonl", examples)
    with pytest.raises(DatasetError, match=message):
        load_examples(asked, shots=5, asked=load(asked).problems)


def test_the_questions_themselves_are_no_examples(tmp_path: Path) -> None:
    asked = write(tmp_path / "train.jsonl", solved(9))
    with pytest.raises(DatasetError, match="not asked"):
        load_examples(asked, shots=5, asked=load(asked).problems)


def hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    module = type(sys)("datasets")
    vars(module)["load_dataset"] = answer
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_gsm8ks_examples_are_the_first_of_its_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []

    def load_dataset(*names: Any, split: Any) -> list[Any]:
        wanted.append((names, split))
        return [{"question": each.question, "answer": each.answer} for each in solved(5)]

    hub(monkeypatch, load_dataset)
    assert [each.question for each in load_examples("openai/gsm8k", shots=5)] == [each.question for each in solved(5)]
    assert wanted == [(("openai/gsm8k", "main"), "train[:5]")]


def test_without_the_hub_there_are_no_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no cache path to host")

    hub(monkeypatch, load_dataset)
    with pytest.raises(DatasetError, match=r"^5-shot needs examples: openai/gsm8k, .* cannot be read from the hub \(no cache path"):
        load_examples("openai/gsm8k", shots=5)


def test_the_bundled_file_is_where_the_package_is() -> None:
    assert few_shot.BUNDLED.parent == Path(few_shot.__file__).parent
