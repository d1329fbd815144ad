"""The plugin's side of ``harness_tax.py`` and ``vllm_tax.py``: tests that pytest runs, copied into a folder of their own.

The engine is loaded by the fixture. One test times ``QuestionSet.graded`` on a new ``QuestionSet`` each time it is asked over the
socket, so that ordering and wording the questions are paid for every time, as in a session; the other ``Engine.generate`` alone.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from multiprocessing.connection import Client
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.families.accuracy.observe import QuestionSet
from pytest_llminfer.families.accuracy.record import ORDER_SEED

if TYPE_CHECKING:
    from pytest_llminfer.datasets.load import Dataset
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.observations.generation import Generation

OPTIONS = ("--model=reference", "--dtype=bf16", "--quantization=none", "--dataset=synthetic")


def pytest_command(folder: Path, test: str, *options: str) -> tuple[str, ...]:
    """What runs one test of this file, which is copied into ``folder``."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    shutil.copy(__file__, folder)
    named = f"{Path(__file__).name}::{test}"
    return (sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *OPTIONS, *options, named)


class Kept:
    """An engine that keeps what it generated last: graded answers hold no token ids."""

    def __init__(self, engine: Engine) -> None:
        self.info, self.supports = engine.info, engine.supports
        self._engine = engine
        self.generations: list[Generation] = []

    def generate(self, *arguments: Any) -> list[Generation]:
        """What the engine generates."""
        self.generations = self._engine.generate(*arguments)
        return self.generations


def test_answers_on_request(engine: Engine, dataset: Dataset, model: Model) -> None:
    """Answer requests until None comes."""
    kept: Any = Kept(engine)
    sampling = QuestionSet(dataset, model, None).sampling
    with Client(os.environ["HARNESS_TAX_SOCKET"]) as driver:
        driver.send({"max_tokens": sampling.max_tokens, "max_batch_tokens": engine.settings()["resolved"]["max_batch_tokens"]})
        while (request := driver.recv()) is not None:
            start = time.perf_counter()
            questions = QuestionSet(dataset, model, request["questions"])
            graded = questions.graded(kept, questions.ids(kept))
            seconds = time.perf_counter() - start
            answers = {
                name: (list(generation.token_ids), (answer.strict, answer.flexible, answer.format_miss, answer.truncated))
                for (name, answer), generation in zip(graded.items(), kept.generations, strict=True)
            }
            driver.send({"seconds": seconds, "answers": answers})


def test_generates_on_request(engine: Engine, dataset: Dataset, model: Model) -> None:
    """Send the prompts, the sampling and the engine's settings; then generate on request until None comes."""
    questions = QuestionSet(dataset, model, None)
    prompts, sampling = questions.prompts(engine, [problem.id for problem in dataset.ordered(ORDER_SEED)]), questions.sampling
    resolved = engine.settings()["resolved"]
    with Client(os.environ["HARNESS_TAX_SOCKET"]) as driver:
        driver.send(
            {"prompts": prompts, "max_tokens": sampling.max_tokens, "ends": engine.info.end_token_ids, "resolved": resolved}
        )
        while (request := driver.recv()) is not None:
            start = time.perf_counter()
            generations = engine.generate(request["prompts"], sampling)
            seconds = time.perf_counter() - start
            answers = {str(number): list(generation.token_ids) for number, generation in enumerate(generations)}
            driver.send({"seconds": seconds, "answers": answers})
