"""Reading and grading as lm-evaluation-harness does: its own filters and metric, run on the same texts."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

import lm_eval_environment
import pytest

from pytest_llminfer.datasets.few_shot import load_examples
from pytest_llminfer.datasets.gsm8k import Problem, extract_flexible, extract_strict, grade
from pytest_llminfer.datasets.load import load
from pytest_llminfer.datasets.prompts import FORMS

TEXTS = 5000
VERSION_1 = {"strict": "####@1", "flexible": "last-number@1"}
"""The versions of the readings that are lm-evaluation-harness's; later ones read more."""
READERS = {"strict-match": extract_strict, "flexible-extract": extract_flexible}
NUMBER = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")

# Runs in lm-eval's environment. What it reads of the task is the task's own file, so that a newer version is compared as it is.
THEIRS = """
import json, sys
from pathlib import Path
import lm_eval, yaml
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import exact_match_fn
from lm_eval.filters import build_filter_ensemble
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import apply_template

task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
asked = json.load(sys.stdin)
instances = [
    Instance("generate_until", {"answer": gold}, (), number, resps=[text]) for number, (gold, text) in enumerate(asked["graded"])
]
for entry in task["filter_list"]:
    steps = [(step.pop("function"), step) for step in entry["filter"]]
    build_filter_ensemble(entry["name"], steps).apply(instances)
(metric,) = task["metric_list"]
options = {name: value for name, value in metric.items() if name not in ("metric", "aggregation", "higher_is_better")}
right = lambda gold, found: bool(exact_match_fn(references=[gold], predictions=[found], **options)["exact_match"])
until = task["generation_kwargs"]["until"]
json.dump(
    {
        "version": task["metadata"]["version"],
        "shots": task["num_fewshot"],
        "until": until,
        "graded": [
            {name: (found, right(instance.doc["answer"], found)) for name, found in instance.filtered_resps.items()}
            for instance in instances
        ],
        "cut": [postprocess_generated_text(text, until, None) for text in asked["cut"]],
        "worded": [[apply_template(task[part], doc) for part in ("doc_to_text", "doc_to_target")] for doc in asked["worded"]],
    },
    sys.stdout,
)
"""


@pytest.fixture(scope="session")
def lm_eval() -> Callable[..., dict[str, Any]]:
    python = lm_eval_environment.filters()

    def ask(*, graded: Sequence[Any] = (), cut: Sequence[Any] = (), worded: Sequence[Any] = ()) -> dict[str, Any]:
        request = json.dumps({"graded": graded or [("#### 1", "#### 1")], "cut": cut, "worded": worded})
        done = subprocess.run([str(python), "-c", THEIRS], input=request, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return ask


def written(rng: random.Random, value: int) -> str:
    """A number as models write it, right or nearly so."""
    whole = f"{value:,}" if rng.random() < 0.4 else str(value)
    if rng.random() < 0.5:
        return whole
    before = rng.choice(["", "", "", "$", "$ ", "-", "-$", "$-", "+", "0", "€", "\N{MINUS SIGN}"])
    after = rng.choice(["", ".", ".00", ".0", ".50", "..", "...", ",", ".5.", "%", " dollars", "/2", "e3", "\u0663", "\uff13"])
    return before + whole + after


def answer(rng: random.Random, value: int) -> str:
    """A text such as models generate: steps, then mostly a marked number, sometimes several, none, or what is no text at all."""
    pieces = [
        f"{rng.randint(1, 99)} * {rng.randint(1, 99)} = {written(rng, rng.randint(1, 9999))} eggs."
        for _ in range(rng.randint(0, 3))
    ]
    kind = rng.random()
    if kind < 0.6:
        pieces += [f"#### {written(rng, value + more)}" for more in rng.choice([(0,), (0,), (0,), (0, 1), (1, 0), (0, 2, 1)])]
    elif kind < 0.75:
        mark = rng.choice(["####", "#####", "### ", "####  ", "####\t", "##### "])
        pieces += [f"{mark}{written(rng, value)}", f"So it is {written(rng, value)}"]
    elif kind < 0.85:
        pieces += [f"The answer is {written(rng, value)}", rng.choice(["", "!", " apples", "\n\nQuestion: What are 3 + 4?"])]
    elif kind < 0.9:
        pieces = [
            rng.choice(["", "I cannot say.", "####", "#### ", "#### none", "\u0661\u0668", "\uff11\uff18", "½", "\u00b2", "\x00"])
        ]
    else:
        pieces += ["".join(rng.choices("#### $,.-0123456789\n x\u0663\u2212\u00a0", k=rng.randint(1, 40)))]
    return rng.choice(["\n", " ", "\n\n"]).join(pieces)


def cases() -> list[tuple[str, str]]:
    """Solutions and texts; in most texts the number is the solution's."""
    rng, made = random.Random(20260101), []
    for _ in range(TEXTS):
        value = rng.choice([rng.randint(0, 20), rng.randint(-500, 500), rng.randint(1000, 10**7)])
        said = value if rng.random() < 0.8 else value + rng.randint(1, 9)
        made.append((f"Worked out.\n#### {value:,}" if rng.random() < 0.5 else f"#### {value}", answer(rng, said)))
    return made


@dataclass
class Comparison:
    """Indices of texts. by_value: ours right and theirs wrong, both numbers being equal; wrong: any other disagreement."""

    same: int
    by_value: list[int]
    wrong: list[int]


def compare(name: str, asked: list[Any], theirs: list[Any], read: Callable[[str], Decimal | None]) -> Comparison:
    found = Comparison(0, [], [])
    for number, ((gold, text), each) in enumerate(zip(asked, theirs, strict=True)):
        (extracted, right), ours = each[name], read(text)
        value = parse(extracted)
        if (None if ours is None else Fraction(ours)) != value:
            found.wrong.append(number)
        elif (ours is not None and ours == extract_strict(gold)) == right:
            found.same += 1
        elif not right and value == parse(gold.rpartition("#### ")[2]):
            found.by_value.append(number)
        else:
            found.wrong.append(number)
    return found


def plain(extracted: str) -> str:
    """What lm-eval compares: without ``$``, ``,`` and one final full stop."""
    return re.sub(r"\.$", "", re.sub(r"[$,]", "", extracted))


def parse(extracted: str) -> Fraction | None:
    """The value of what lm-eval extracts, read without any code of ours."""
    return Fraction(plain(extracted)) if NUMBER.fullmatch(plain(extracted)) else None


@pytest.fixture(scope="session")
def asked() -> list[tuple[str, str]]:
    return cases()


@pytest.fixture(scope="session")
def theirs(lm_eval: Callable[..., dict[str, Any]], asked: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return lm_eval(graded=asked)["graded"]


@pytest.mark.parametrize(("name", "by_value"), [("strict-match", 111), ("flexible-extract", 244)])
def test_our_reading_is_that_of_lm_eval_but_by_value(
    name: str, by_value: int, asked: list[tuple[str, str]], theirs: list[dict[str, Any]]
) -> None:
    found = compare(name, asked, theirs, READERS[name])
    assert [asked[number] for number in found.wrong] == []
    assert found.same + len(found.by_value) == TEXTS
    # 018, 18.00 and 18.. are 18 to us and another text to lm-eval; nothing else is told apart in another way.
    for number in found.by_value:
        assert plain(theirs[number][name][0]) != plain(asked[number][0].rpartition("#### ")[2])
    assert len(found.by_value) == by_value
    outcomes = [each[name][1] for each in theirs]
    assert 0.2 * TEXTS < sum(outcomes) < 0.8 * TEXTS


def test_a_grade_is_lm_evals_wherever_the_number_is_written_alike(
    asked: list[tuple[str, str]], theirs: list[dict[str, Any]]
) -> None:
    for (gold, text), each in zip(asked, theirs, strict=True):
        graded = grade(Problem("one", "How many?", gold), text, VERSION_1)
        assert graded.strict >= each["strict-match"][1]
        assert graded.flexible >= each["flexible-extract"][1]
        if each["strict-match"][0] == "[invalid]":
            assert graded.format_miss


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("strict-match", lambda text: number_of(re.findall(r"#### (-?[0-9.,]+)", text)[-1:])),  # the last one
        ("strict-match", lambda text: number_of(re.findall(r"#### ?(-?[0-9.,]+)", text)[:1])),  # without the space
        ("strict-match", lambda text: number_of(re.findall(r"#### (-?[\d.,]+)", text)[:1])),  # digits of every script
        ("flexible-extract", lambda text: number_of(re.findall(r"-?[0-9][0-9.,]*", text)[-1:])),  # without -$ and .5
        ("flexible-extract", lambda text: number_of(re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", text)[:1])),  # the first one
    ],
    ids=["last", "no space", "any digit", "other pattern", "first"],
)
def test_another_reading_is_seen(
    name: str, broken: Callable[..., Decimal | None], asked: list[tuple[str, str]], theirs: list[dict[str, Any]]
) -> None:
    assert compare(name, asked, theirs, broken).wrong


def number_of(found: list[str]) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[$,]", "", found[0]).removesuffix(".")) if found else None
    except ArithmeticError:
        return None


def test_the_five_shot_form_is_the_tasks(lm_eval: Callable[..., dict[str, Any]]) -> None:
    form, examples = FORMS["5-shot"], load_examples("synthetic", shots=5)
    (asked,) = load("synthetic").problems[:1]
    documents = [{"question": each.question, "answer": each.answer} for each in (*examples, asked)]
    said = lm_eval(worded=documents)
    *solved, (last, _) = said["worded"]
    assert (said["version"], said["shots"], said["until"]) == (3.0, form.shots, list(form.stop))
    assert form.word(asked.question, examples) == "\n\n".join([*(f"{text} {target}" for text, target in solved), last])


def test_answers_end_where_lm_eval_ends_them(lm_eval: Callable[..., dict[str, Any]], asked: list[tuple[str, str]]) -> None:
    rng = random.Random(3)
    ends = ("", "\n\nQuestion: ", "Question:", "Question", "</s>", "<|im_end|>", "<|im_end|", "question:", "</s>Question:")
    texts = [f"{text}{rng.choice(ends)}{other}{rng.choice(ends)}" for (_, text), (_, other) in pairwise(asked)]
    cut = [FORMS["5-shot"].read(text) for text in texts]
    assert [text for text, _ in cut] == lm_eval(cut=texts)["cut"]
    assert [stopped for _, stopped in cut] == [text != whole for (text, _), whole in zip(cut, texts, strict=True)]
    assert 0.3 < sum(stopped for _, stopped in cut) / len(cut) < 0.95
