"""vLLM's answers, errors and configuration in our words, without vLLM."""

from __future__ import annotations

import dataclasses
import enum
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from signal import Handlers
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.errors import EngineDiedError, EngineStartError, OutOfMemoryError
from pytest_llminfer.worker.backends.vllm import failures, generation, settings
from pytest_llminfer.worker.backends.vllm.frames import pack, unpack
from pytest_llminfer.worker.backends.vllm.scoring import slices
from pytest_llminfer.worker.backends.vllm.watch import ProcessLostError, watched

SAMPLING = {
    "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.1, "seed": 3, "stop_token_ids": [7],
    "ignore_eos": False,
}  # fmt: skip


def flat(rows: list[list[tuple[int, float]]]) -> Any:
    """As vLLM's flat log-probabilities: the chosen token of a step first, then the likeliest."""
    return SimpleNamespace(
        start_indices=list(range(len(rows))),
        token_ids=[token for row in rows for token, _ in row],
        logprobs=[value for row in rows for _, value in row],
    )


def test_the_likeliest_are_kept_whether_or_not_the_chosen_one_is_among_them() -> None:
    rows = [[(9, -4.0), (3, -0.1), (5, -2.0)], [(3, -0.5), (3, -0.5), (9, -1.0)]]
    ids, values = generation.top_logprobs(flat(rows), 2)
    np.testing.assert_array_equal(ids, [[3, 5], [3, 9]])
    np.testing.assert_allclose(values, [[-0.1, -2.0], [-0.5, -1.0]])
    assert (ids.dtype, values.dtype) == (np.dtype(np.int32), np.dtype(np.float32))
    ranks = [{9: (-4.0, 17), 3: (-0.1, 1), 5: (-2.0, 2)}, {3: (-0.5, 1), 9: (-1.0, 2)}]
    steps = [{token: SimpleNamespace(logprob=value, rank=rank) for token, (value, rank) in step.items()} for step in ranks]
    for ours, theirs in zip(generation.top_logprobs(steps, 2), (ids, values), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_sampling_field_is_sent() -> None:
    fields = generation.sampling_fields(SAMPLING, [2], logprobs=0)
    assert fields["stop_token_ids"] == [2, 7]
    assert (fields["top_k"], fields["logprobs"], fields["ignore_eos"], fields["min_tokens"], fields["seed"]) == (
        0,
        None,
        True,
        0,
        3,
    )
    assert generation.sampling_fields({**SAMPLING, "ignore_eos": True}, [2], logprobs=4)["stop_token_ids"] == [7]


def test_slices_hold_every_sequence_once_and_in_order() -> None:
    sequences = [[number] * length for number, length in enumerate((3, 3, 9, 1, 1, 4))]
    parts = list(slices(sequences, most=6))
    assert [sequence for part in parts for sequence in part] == sequences
    assert [sum(map(len, part)) for part in parts] == [6, 9, 6]


def test_frames_carry_arrays() -> None:
    message = unpack(pack({"result": {"row": np.arange(3, dtype=np.float32), "n": 1}}))
    np.testing.assert_array_equal(message["result"]["row"], [0, 1, 2])


class EngineDeadError(Exception):
    """As vLLM calls it."""


LOG = """\
(Worker pid=7) INFO 11-22 10:00:00 [worker.py:1] RuntimeError is mentioned here
(EngineCore pid=6) ERROR 11-22 10:00:01 [core.py:1] Traceback (most recent call last):
(EngineCore pid=6) ERROR 11-22 10:00:01 [core.py:1] ValueError: Available memory is less than requested memory for kv (9 GiB).
(EngineCore pid=6) RuntimeError: Engine core initialization failed. See root cause above.
"""


def log(text: str) -> Any:
    return SimpleNamespace(text=lambda: text)


def test_the_reason_is_taken_from_the_process_that_had_it() -> None:
    generic = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    with (
        pytest.raises(OutOfMemoryError, match=r"loading m: ValueError: Available memory .* \(9 GiB\)"),
        failures.loading("m", log(LOG)),
    ):
        raise generic
    other = LOG.replace("Available memory is less than requested memory for kv (9 GiB).", "no such architecture")
    with pytest.raises(EngineStartError, match="ValueError: no such architecture"), failures.loading("m", log(other)):
        raise generic
    with pytest.raises(EngineStartError, match="KeyError: 'here'"), failures.loading("m", log(LOG)):
        raise KeyError("here")


def test_a_dead_process_is_named() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ended = rf"rank 0 \(process {child.pid}\) of vllm has ended while generating"
    with pytest.raises(EngineDiedError, match=ended), failures.running("generating", {child.pid: "rank 0"}, log("")):
        raise EngineDeadError("see above")
    died = "ERROR Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor."
    named = r"VllmWorker-1 \(process 12\) of vllm died with exit status -9 while generating"
    with pytest.raises(EngineDiedError, match=named), failures.running("generating", {12: "VllmWorker-1"}, log(died)):
        raise EngineDeadError("see above")


def test_a_wait_that_would_never_end_is_ended_when_a_process_is_gone() -> None:
    lock = threading.Lock()
    lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with watched([child.pid], grace_seconds=0.2):
            assert not lock.acquire(timeout=1.5)
        threading.Timer(0.3, child.kill).start()
        started = time.monotonic()
        with pytest.raises(ProcessLostError, match="a process of the engine is gone"), watched([child.pid], grace_seconds=0.2):
            lock.acquire()
        assert time.monotonic() - started < 5
    finally:
        child.kill()
        child.wait()
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
def test_the_handler_of_before_is_put_back(before: Handlers | Callable[..., None]) -> None:
    own = signal.signal(signal.SIGUSR2, before)
    try:
        with watched([]):
            assert signal.getsignal(signal.SIGUSR2) is not before
        assert signal.getsignal(signal.SIGUSR2) is before
        with pytest.raises(KeyError, match="x"), watched([]):
            raise KeyError("x")
        assert signal.getsignal(signal.SIGUSR2) is before
    finally:
        signal.signal(signal.SIGUSR2, own)


def test_a_handler_that_is_not_pythons_leaves_the_signal_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    own, real = signal.getsignal(signal.SIGUSR2), signal.signal
    answers = [None]

    def handed_over(number: Any, handler: Any) -> Any:
        before = real(number, handler)
        return answers.pop() if answers else before

    monkeypatch.setattr(signal, "signal", handed_over)
    try:
        with watched([]):
            pass
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
    finally:
        real(signal.SIGUSR2, own)


def test_a_process_that_is_found_gone_after_the_watch_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(signal, "pthread_kill", lambda *given: sent.append(given))
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with watched([child.pid], grace_seconds=0.3):
        time.sleep(0.6)
    time.sleep(0.5)
    assert sent == []
    with watched([child.pid], grace_seconds=0.1):
        time.sleep(1.2)
    assert len(sent) == 1


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError, match="x"), failures.running("generating", {}, log("")):
        raise KeyError("x")
    with pytest.raises(OutOfMemoryError, match="while generating: CUDA out of memory"), failures.running("generating", {}, log("")):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")


class Mode(enum.Enum):
    FULL = 2


@dataclasses.dataclass
class EngineArgs:
    """As vLLM's: defaults of many kinds."""

    model: str = "facebook/opt-125m"
    download_dir: str | None = None
    max_model_len: int | None = None
    mode: Mode = Mode.FULL
    skipped: object = dataclasses.field(default_factory=object)
    layers: set[Any] = dataclasses.field(default_factory=lambda: {"b", "a"})
    _api_process_rank: int = 0


def test_defaults_are_plain_and_about_no_machine() -> None:
    assert settings.defaults(EngineArgs) == {"max_model_len": None, "mode": "FULL", "layers": ["a", "b"]}


def test_resolved_settings_are_what_this_version_has() -> None:
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=64, dtype=Mode),
        cache_config=SimpleNamespace(block_size=16),
        use_v2_model_runner=False,
    )
    found = settings.resolved(config, {"attention_backend": "FLASH"})
    assert found == {
        "max_model_len": 64, "dtype": "Mode", "block_size": 16, "use_v2_model_runner": False, "attention_backend": "FLASH",
    }  # fmt: skip
