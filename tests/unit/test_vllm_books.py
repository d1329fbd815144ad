"""What vLLM's worker has written down of a GPU, read off stand-ins with the attributes that 0.25.1 gives it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

rank_memory = pytest.importorskip("pytest_llminfer.worker.backends.vllm.rank_memory", exc_type=ImportError)

GIB = 2**30
SEGMENTS = [
    {"total_size": 20 << 20, "segment_pool_id": (0, 0)},
    {"total_size": 2 << 20, "segment_pool_id": (0, 1)},
    {"total_size": 6 << 20, "segment_pool_id": (0, 2)},
    {"total_size": 1 << 20},
]


def worker(**change: Any) -> Any:
    runner = SimpleNamespace(model_memory_usage=15 * GIB, kv_caches=[])
    books = {
        "requested_memory": 129 * GIB,
        "peak_activation_memory": 2 * GIB,
        "non_torch_memory": GIB,
        "cudagraph_memory_estimate": GIB // 2,
    }
    return SimpleNamespace(model_runner=runner, **{name: value for name, value in (books | change).items() if value is not None})


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(rank_memory.torch.cuda, "memory_snapshot", lambda: SEGMENTS)

    def read(subject: Any, *, subtracted: bool, pool: int = 110 * GIB) -> Any:
        monkeypatch.setattr(rank_memory, "_graphs_are_subtracted", lambda: subtracted)
        return rank_memory._books(subject, pool)

    return read


def test_the_parts_are_added_up_with_the_graphs_that_were_subtracted(books: Any) -> None:
    assert books(worker(), subtracted=True) == {
        "activation_peak_bytes": 2 * GIB,
        "non_torch_bytes": GIB,
        "graphs_estimate_bytes": GIB // 2,
        "engine_weights_bytes": 15 * GIB,
        "requested_bytes": 129 * GIB,
        "graphs_bytes": 8 << 20,
        "accounted_bytes": 15 * GIB + 2 * GIB + GIB + GIB // 2 + 110 * GIB,
    }
    assert books(worker(), subtracted=False)["accounted_bytes"] == 128 * GIB
    # The second model runner estimates none.
    assert books(worker(cudagraph_memory_estimate=0), subtracted=True)["accounted_bytes"] == 128 * GIB


def test_a_pool_that_was_given_leaves_nothing_to_add_up(books: Any) -> None:
    given = worker(peak_activation_memory=None, non_torch_memory=None, cudagraph_memory_estimate=None)
    found = books(given, subtracted=True)
    assert (found["requested_bytes"], found["accounted_bytes"]) == (129 * GIB, None)
    assert found["engine_weights_bytes"] == 15 * GIB
