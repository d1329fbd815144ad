"""GPUs, each held by one cell at a time, across processes too."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_llminfer.engines import pool as pool_module
from pytest_llminfer.engines.pool import Pool
from pytest_llminfer.engines.replicas import at_once
from pytest_llminfer.errors import EngineStartError
from pytest_llminfer.hardware import Gpu

GPUS = [Gpu(index, f"GPU-{index}", "NVIDIA H100", 81559, "580") for index in range(3)]
HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "wb")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.02)
    return Pool(GPUS, folder=tmp_path, timeout=0.2)


def test_two_leases_never_share(pool) -> None:
    first, second = pool.lease(2), pool.lease(1)
    assert first.ids() == ("0", "1")
    assert second.ids() == ("2",)
    assert first.ids() == ("0", "1")


def test_replicas_that_ask_at_the_same_time_are_given_the_same(pool) -> None:
    lease = pool.lease(3)
    assert at_once([lease.ids] * 3) == [("0", "1", "2")] * 3


def test_what_is_let_go_can_be_taken(pool) -> None:
    first, second = pool.lease(3), pool.lease(2)
    first.ids()
    with pytest.raises(EngineStartError, match=r"2 of 3 GPUs were not free for 0\.2 s"):
        second.ids()
    first.release()
    assert second.ids() == ("0", "1")


def test_all_at_once_or_none(pool) -> None:
    held, wanted, small = pool.lease(2), pool.lease(2), pool.lease(1)
    held.ids()
    with pytest.raises(EngineStartError):
        wanted.ids()
    # The one GPU that was free meanwhile was not kept by the lease that wanted two.
    assert small.ids() == ("2",)


def test_another_process_that_holds_one_is_respected_and_waited_for(pool, tmp_path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "GPU-0.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert pool.lease(1).ids() == ("1",)
        told = []
        waiting = Pool(GPUS, folder=tmp_path, timeout=30).lease(3, lambda *call: (told.append(call), holder.kill()))
        pool = None
        del pool
        assert waiting.ids() == ("0", "1", "2")
        assert told[0] == ("waiting for GPUs", 0, 3)


def test_who_waits_is_served_before_who_gave_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.05)
    pool = Pool(GPUS[:2], folder=tmp_path, timeout=20)
    first, second = pool.lease(1), pool.lease(2)
    first.ids()
    order = []

    def wait() -> None:
        second.ids()
        order.append("waited")
        time.sleep(0.2)
        second.release()

    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(wait)
        while pool.lease_now(1) is not None:  # until the one that waits has the turn
            time.sleep(0.01)
        first.release()
        again = pool.lease(1)
        again.ids()
        order.append("again")
        waiting.result()
    assert order == ["waited", "again"]


def test_a_slice_of_a_gpu_is_named_by_its_id(tmp_path) -> None:
    assert Pool([Gpu(0, "MIG-1", "H100 MIG", 0, "580")], folder=tmp_path).lease(1).ids() == ("MIG-1",)


def test_who_is_not_wanted_any_more_stops_waiting(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.02)
    pool = Pool(GPUS, folder=tmp_path, timeout=60)
    first, second = pool.lease(3), pool.lease(1)
    first.ids()
    with ThreadPoolExecutor() as executor:
        waiting = executor.submit(second.ids)
        time.sleep(0.1)
        assert not waiting.done()
        second.release()
        with pytest.raises(EngineStartError, match="not wanted any more"):
            waiting.result(timeout=10)
