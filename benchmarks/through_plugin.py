"""The plugin's side of ``harness_tax.py``: a test that pytest runs, copied into a folder of its own.

The engine is loaded by the fixture. Each time the test is asked over the socket, it times ``QuestionSet.ask`` on a new
``QuestionSet``, so that ordering and wording the questions are paid for every time, as in a session.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Client
from typing import TYPE_CHECKING, Any

from pytest_llminfer.answering import QuestionSet

if TYPE_CHECKING:
    from pytest_llminfer.datasets.load import Dataset
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.observations import Generation


class Kept:
    """An engine that keeps what it generated last: graded answers hold no token ids."""

    def __init__(self, engine: Engine) -> None:
        self.info = engine.info
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
            graded = QuestionSet(dataset, model, request["questions"]).ask(kept)
            seconds = time.perf_counter() - start
            answers = {
                name: (list(generation.token_ids), (answer.strict, answer.flexible, answer.format_miss, answer.truncated))
                for (name, answer), generation in zip(graded.items(), kept.generations, strict=True)
            }
            driver.send({"seconds": seconds, "answers": answers})
