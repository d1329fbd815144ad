"""GPUs, each held by one cell at a time, across processes too."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.engines import pool as pool_module
from pytest_llminfer.engines.pool import Pool
from pytest_llminfer.engines.replicas import at_once
from pytest_llminfer.errors import EngineStartError
from pytest_llminfer.hardware import Gpu
from tests.support.present import present

GPUS = [Gpu(index, f"GPU-{index}", "NVIDIA H100", 81559, "580") for index in range(3)]
HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "wb")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.02)
    return Pool(GPUS, folder=tmp_path, timeout=0.2)


@pytest.fixture
def other(tmp_path: Path) -> Pool:
    """The pool of another session: it shares the files, and not what ``pool`` knows of itself."""
    return Pool(GPUS, folder=tmp_path, timeout=0.2)


def test_two_leases_never_share(pool: Pool) -> None:
    first, second = pool.lease(2), pool.lease(1)
    assert first.ids() == ("0", "1")
    assert second.ids() == ("2",)
    assert first.ids() == ("0", "1")


def test_a_lease_knows_what_was_in_use_before_its_cell(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([3, 5, 7])
    monkeypatch.setattr(pool_module, "device_bytes", lambda ids: ((found := list(ids)) and (next(readings), found)) or None)
    lease = pool.lease(2)
    assert lease.idle_bytes is None
    lease.ids()
    assert lease.idle_bytes == (3, ["GPU-0", "GPU-1"])
    lease.release()
    lease.ids()
    # What the cell itself left behind is no idle device.
    assert lease.idle_bytes == (3, ["GPU-0", "GPU-1"])
    other: Any = present(pool.lease_now(1))
    assert other.idle_bytes == (5, ["GPU-2"])


def test_replicas_that_ask_at_the_same_time_are_given_the_same(pool: Pool) -> None:
    lease = pool.lease(3)
    assert at_once([lease.ids] * 3) == [("0", "1", "2")] * 3


def test_what_is_let_go_can_be_taken(pool: Pool, other: Pool) -> None:
    first, second = pool.lease(3), other.lease(2)
    first.ids()
    with pytest.raises(EngineStartError, match=r"2 of 3 GPUs were not free for 0\.2 s"):
        second.ids()
    present(first).release()
    assert second.ids() == ("0", "1")


def test_session_does_not_wait_for_its_own_gpus(tmp_path: Path) -> None:
    pool = Pool(GPUS, folder=tmp_path, timeout=60)
    first, second = pool.lease(2, cell="vllm-tp2"), Pool(GPUS, folder=tmp_path, timeout=60, held=pool.held).lease(2)
    first.ids()
    started = time.monotonic()
    with pytest.raises(EngineStartError, match=r"2 GPUs are needed, and of 3 this session itself holds 2, for vllm-tp2: close"):
        second.ids()
    assert time.monotonic() - started < 10
    present(first).release()
    assert second.ids() == ("0", "1")
    assert pool.held == {"0": "another cell", "1": "another cell"}
    second.release()
    assert first.ids() == ("0", "1")  # an engine that is loaded again


def test_what_is_kept_for_later_makes_room(tmp_path: Path) -> None:
    ahead = Pool(GPUS, folder=tmp_path).lease_now(2, "next")
    pool = Pool(GPUS, folder=tmp_path, timeout=60, held=present(ahead)._pool.held, make_room=present(ahead).release)
    small, large = pool.lease(1), pool.lease(2)
    assert small.ids() == ("2",)
    assert pool.held["0"] == "next"
    assert large.ids() == ("0", "1")


def test_beside_what_a_session_holds_it_waits_for_others(pool: Pool, other: Pool) -> None:
    mine, theirs, wanted = pool.lease(1), other.lease(1), pool.lease(2)
    assert (mine.ids(), theirs.ids()) == (("0",), ("1",))
    with pytest.raises(EngineStartError, match="other sessions of this user"):
        wanted.ids()
    theirs.release()
    assert wanted.ids() == ("1", "2")


def test_all_at_once_or_none(pool: Pool, other: Pool) -> None:
    held, wanted, small = pool.lease(2), other.lease(2), pool.lease(1)
    held.ids()
    with pytest.raises(EngineStartError, match="2 of 3 GPUs were not free"):
        wanted.ids()
    # The one GPU that was free meanwhile was not kept by the lease that wanted two.
    assert small.ids() == ("2",)


def test_another_process_that_holds_one_is_respected_and_waited_for(pool: Pool, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "GPU-0.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert present(holder.stdout).readline() == "held\n"
        assert pool.lease(1).ids() == ("1",)
        told: list[tuple[str, int, int]] = []

        def tell(*call: Any) -> None:
            told.append(call)
            holder.kill()

        waiting = Pool(GPUS, folder=tmp_path, timeout=30).lease(3, tell)
        del pool
        assert waiting.ids() == ("0", "1", "2")
        assert told[0] == ("waiting for GPUs", 0, 3)


def test_a_waiting_lease_gets_gpus_before_the_one_that_released_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.05)
    pool, other = (Pool(GPUS[:2], folder=tmp_path, timeout=20) for _ in range(2))
    first, second = pool.lease(1), other.lease(2)
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
        present(first).release()
        again = pool.lease(1)
        again.ids()
        order.append("again")
        waiting.result()
    assert order == ["waited", "again"]


def test_a_slice_of_a_gpu_is_named_by_its_id(tmp_path: Path) -> None:
    assert Pool([Gpu(0, "MIG-1", "H100 MIG", 0, "580")], folder=tmp_path).lease(1).ids() == ("MIG-1",)


def test_a_cancelled_lease_stops_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.02)
    pool, other = (Pool(GPUS, folder=tmp_path, timeout=60) for _ in range(2))
    first, second = pool.lease(3), other.lease(1)
    first.ids()
    with ThreadPoolExecutor() as executor:
        waiting = executor.submit(second.ids)
        time.sleep(0.1)
        assert not waiting.done()
        second.release()
        with pytest.raises(EngineStartError, match="not wanted any more"):
            waiting.result(timeout=10)


def test_sessions_meet_wherever_their_temporary_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu(0, f"GPU-{uuid.uuid4()}", "NVIDIA H100", 81559, "580")]
    monkeypatch.delenv("LLMINFER_LOCKS", raising=False)
    leases = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for variable in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME", "XDG_CACHE_HOME"):
            monkeypatch.setenv(variable, str(tmp_path / name))
        monkeypatch.setattr(tempfile, "tempdir", None)
        leases.append(Pool(gpus).lease_now(1))
    first, second = leases
    present(first).release()
    (pool_module.default_folder() / f"{gpus[0].uuid}.lock").unlink()
    assert second is None


def test_lock_folders_of_their_own_do_not_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = []
    for name in ("one", "two"):
        monkeypatch.setenv("LLMINFER_LOCKS", str(tmp_path / name / "locks"))
        leases.append(Pool(GPUS).lease_now(3))
    assert all(leases)
    assert Pool(GPUS).lease_now(1) is None


@pytest.mark.fault("files", "the folder of GPU locks is another user's", "refused, with the variable that names another")
def test_a_folder_of_another_user_is_refused(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: -1)
    with pytest.raises(EngineStartError, match="is another user's; name one of your own with LLMINFER_LOCKS"):
        pool.lease(1).ids()


@pytest.mark.fault("files", "links lie where the folder of GPU locks or a lock should", "refused; no file is emptied")
def test_links_in_place_of_the_folder_or_of_a_lock_are_not_followed(tmp_path: Path) -> None:
    """As another user can lay them out in /tmp: a file of ours was emptied by them."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    linked = tmp_path / "linked"
    linked.symlink_to(elsewhere)
    with pytest.raises(EngineStartError, match=r"linked is a link; name one of your own with LLMINFER_LOCKS"):
        Pool(GPUS, folder=linked).lease(1).ids()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(EngineStartError, match=r"dangling is a link; name"):
        Pool(GPUS, folder=tmp_path / "dangling").lease(1).ids()
    with pytest.raises(EngineStartError, match=r"victim is no folder; name"):
        Pool(GPUS, folder=victim).lease(1).ids()
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(EngineStartError, match=r"open can be written by everybody; name"):
        Pool(GPUS, folder=open_to_all).lease(1).ids()
    for name in ("turn.lock", f"{GPUS[0].uuid}.lock"):
        (elsewhere / name).symlink_to(victim)
        with pytest.raises(EngineStartError, match=rf"the lock .*{name} is a link; remove it, or name another folder"):
            Pool(GPUS, folder=elsewhere).lease(1).ids()
        (elsewhere / name).unlink()
    assert victim.read_text() == "precious"
    assert not list(elsewhere.glob("GPU*"))
    Pool(GPUS, folder=elsewhere).lease(1).release()
