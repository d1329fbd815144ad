"""How many questions are in flight at once, as --gsm8k-concurrency says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llminfer.datasets.load import load
from pytest_llminfer.families.accuracy.observe import QuestionSet
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.spec import EngineSpec


class Fake:
    """Notes how many prompts it is given at once, and answers each with its own length."""

    spec = EngineSpec("simulated")
    info = SimpleNamespace(device="cpu", dtype="fp32")

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.seen: list[tuple[int, ...]] = []

    def supports(self, _: str) -> bool:
        return False

    def generate(self, prompts: Any, sampling: Any, **_: Any) -> list[Any]:
        if sampling.max_tokens > 4:  # no warm-up
            self.sizes.append(len(prompts))
            self.seen += [tuple(prompt) for prompt in prompts]
        return [Generation((1,), "stop", text=f"#### {len(prompt)}") for prompt in prompts]

    @property
    def model(self) -> Model:
        return MODEL


MODEL, DATASET = Model("reference"), load("synthetic")


@pytest.mark.parametrize(
    ("concurrency", "sizes"),
    # Looks after 40 and 80 of 100: of more at once some are asked ahead, of fewer a look takes several batches.
    [(None, [40, 40]), (16, [16, 16, 16, 16, 16]), (64, [64, 36]), (100, [100]), (256, [100])],
)
def test_the_requested_number_of_questions_is_asked_at_once(concurrency: int | None, sizes: list[int]) -> None:
    engine: Any = Fake()
    questions = QuestionSet(DATASET, MODEL, 100, concurrency=concurrency)
    order = questions.ids(engine)
    asking = questions.asking(engine)
    for upto in (40, 80):
        assert list(asking.ask(order[:upto], following=order).answers) == order[:upto]
    assert engine.sizes == sizes
    assert len(set(engine.seen)) == len(engine.seen)


def test_a_record_is_made_with_as_many_at_once() -> None:
    engine: Any = Fake()
    questions = QuestionSet(DATASET, MODEL, 50, runs=2, concurrency=20)
    assert questions.record(engine, None)["questions"] == 50
    assert engine.sizes == [20, 20, 10] * 2
