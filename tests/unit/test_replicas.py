"""Prompts dealt over replicas: every one comes back, in order, whatever the remainder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.engines.replica import Replica
from pytest_llminfer.engines.replicas import SharedProgress, at_once, collect, deal, first_of_equal
from pytest_llminfer.errors import EngineDiedError, EngineError
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec


@given(st.integers(0, 60), st.integers(1, 9))
def test_what_is_dealt_comes_back_in_order(count: int, replicas: int) -> None:
    shares = deal(count, replicas)
    assert len(shares) == replicas
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    answers = [[f"answer {index}" for index in share] for share in shares]
    assert collect(shares, answers, whose="vllm") == [f"answer {number}" for number in range(count)]


def test_a_lost_answer_is_not_filled_up() -> None:
    with pytest.raises(EngineError, match=r"^vllm-dp2: asked 2 prompts, 1 answers of replica 0 came back$"):
        collect([[0, 2], [1]], [["a"], ["b"]], whose="vllm-dp2")


def test_actions_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=10)
    assert len(at_once([meeting.wait] * 3)) == 3


def test_a_failure_is_raised_once_all_have_ended() -> None:
    ended = []

    def fail() -> None:
        raise EngineError("first")

    def go_on() -> None:
        time.sleep(0.1)
        ended.append(True)

    with pytest.raises(EngineError, match="first"):
        at_once([fail, go_on])
    assert ended == [True]


def test_progress_counts_all_replicas_together() -> None:
    told: list[tuple[str, int, int]] = []
    shared = SharedProgress(lambda *call: told.append(call), 2)
    shared.of(0)("generating", 1, 4)
    shared.of(1)("generating", 2, 3)
    assert told == [("generating", 1, 4), ("generating", 3, 7)]


def test_the_first_replica_that_differs_is_named() -> None:
    assert first_of_equal([{"a": 1}, {"a": 1}, {"a": 2}]) == ({"a": 1}, 2)
    assert first_of_equal(["x", "x"]) == ("x", None)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """The simulated engine alone, and as three replicas."""
    folder = tmp_path_factory.mktemp("replicas")

    def launch(replicas: int, fault: str = "") -> Engine:
        spec = EngineSpec("simulated", dp=replicas)
        launches = [
            Launch(
                spec,
                Model("reference"),
                {"fault": fault} if fault and index == 1 else {},
                {},
                60.0,
                folder / f"log-{replicas}-{fault}-{index}",
                index=index,
            )
            for index in range(replicas)
        ]
        started.append(Engine(*launches))
        return started[-1]

    started: list[Engine] = []
    yield launch
    for engine in started:
        engine.close()


def test_replicas_answer_as_one_does(engines: Callable[..., Engine]) -> None:
    one, three = engines(1), engines(3)
    prompts = one.model.prompts(7)
    single, dealt = (engine.generate(prompts, max_tokens=6) for engine in (one, three))
    assert [answer.token_ids for answer in dealt] == [answer.token_ids for answer in single]
    assert len({answer.token_ids for answer in dealt}) > 1
    assert [list(scores) for scores in three.score(prompts[:2])] == [list(scores) for scores in one.score(prompts[:2])]
    assert three.generate([], max_tokens=1) == []
    assert three.loads == three.info.device_count == 3
    assert three.layout() == one.layout()
    assert three.memory().weights_bytes == one.memory().weights_bytes
    ranks = three.ranks()
    assert sorted(rank.dp_rank for rank in ranks) == [0, 1, 2]
    assert len({rank.pid for rank in ranks}) == 3


def test_a_replica_that_dies_fails_the_request_and_is_started_anew(engines: Callable[..., Engine]) -> None:
    engine = engines(2, "exit")
    with pytest.raises(EngineDiedError, match="exited with status 3"):
        engine.generate(engine.model.prompts(2), max_tokens=2)
    # The first replica never died; the second has been loaded anew for this.
    assert engine.score([[5, 6], [7, 8]])
    assert engine.loads == 3


def test_replicas_that_store_otherwise_are_told_apart(engines: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines(2)
    real = Replica.ask

    def ask(self: Any, method: Any, params: Any, progress: None = None) -> Any:
        answer = real(self, method, params, progress)
        if method == "layout" and self.launch.index == 1:
            answer["parameters"][0]["dtype"] = "float64"
        return answer

    monkeypatch.setattr(Replica, "ask", ask)
    with pytest.raises(EngineError, match="replica 1 stores its parameters otherwise than replica 0"):
        engine.layout()
