"""Tensor parallelism of the transformers backend: two processes that answer as one does, and whose loss is told."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.errors import EngineDiedError, EngineHungError
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec

MODEL = Model("reference")
PROBES = """\
import os
import time

def sleep(model, *, seconds):
    time.sleep(seconds if os.environ["RANK"] == "0" else 0)

def scale(model, *, rank, factor):
    for number, layer in enumerate(model.model.layers):
        weight = layer.mlp.down_proj.weight
        part = weight.to_local() if hasattr(weight, "to_local") else weight
        if int(os.environ.get("RANK", 0)) == rank:
            part.mul_(factor)
    return int(os.environ.get("RANK", 0)), list(part.shape)
"""


def start(folder: Path, *, tp: int, timeout: float = 120, **cell) -> Engine:
    spec = EngineSpec("transformers", **{"dtype": "fp32", "tp": tp, **cell})
    variables = {"OMP_NUM_THREADS": "2"}
    return Engine(Launch(spec, MODEL, engine_args={}, variables=variables, timeout=timeout, log=folder / f"tp{tp}.log"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "probes.py").write_text(PROBES)
    return folder


@pytest.fixture(scope="module")
def prompts():
    return MODEL.prompts(4)


@pytest.fixture(scope="module")
def single(folder, prompts):
    """What one process answers, by request."""
    engine = start(folder, tp=1)
    found = answers(engine, prompts)
    engine.close()
    return found


@pytest.fixture(scope="module")
def two(folder):
    engine = start(folder, tp=2)
    yield engine
    engine.close()


def answers(engine: Engine, prompts) -> dict:
    generated = engine.generate(prompts, max_tokens=32, logprobs=4)
    sequences = [prompt + list(answer.token_ids) for prompt, answer in zip(prompts[:2], generated, strict=False)]
    return {
        "engine": generated,
        **{route: engine.generate(prompts[:1], max_tokens=8, route=route) for route in ("loop", "no_cache")},
        **{route: engine.score(sequences[:1], route=route) for route in ("prefill", "decode")},
        "cache": engine.kv_cache(prompts[0], extend=3),
        "memory": engine.memory(),
        "ranks": engine.ranks(),
    }


def tokens(generations) -> list:
    return [generation.token_ids for generation in generations]


def members(engine: Engine) -> list[psutil.Process]:
    """Every live process of the engine's process group."""
    leader = os.getpgid(engine.ranks()[0].pid)
    return [process for process in psutil.process_iter() if _group(process.pid) == leader]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_two_ranks_answer_as_one_process_does(single, two, prompts):
    found = answers(two, prompts)
    for route in ("engine", "loop", "no_cache"):
        assert tokens(found[route]) == tokens(single[route])
    for one, other in zip(found["engine"], single["engine"], strict=True):
        np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, atol=1e-4)
    for route in ("prefill", "decode"):
        np.testing.assert_allclose(found[route][0], single[route][0], atol=1e-4)
    # Heads and bytes of the whole model, although each rank holds one of its two KV heads.
    assert found["cache"] == single["cache"]
    assert two.info.device_count == 2


def test_a_wrong_weight_on_one_rank_changes_the_tokens(single, two, prompts, folder):
    probe = f"{folder / 'probes.py'}::scale"
    # The probe is called on both ranks, and rank 0 is who answers.
    assert two.run(probe, rank=1, factor=-1.0) == [0, [256, 384]]
    assert tokens(two.generate(prompts, max_tokens=32)) != tokens(single["engine"])
    two.run(probe, rank=1, factor=-1.0)
    assert tokens(two.generate(prompts, max_tokens=32)) == tokens(single["engine"])


def test_each_rank_holds_what_the_plan_gives_it(single, two):
    ranks = two.ranks()
    assert [(rank.name, rank.device, rank.tp_rank) for rank in ranks] == [
        (f"transformers rank {number}", "cpu", number) for number in range(2)
    ]
    assert len({rank.pid for rank in ranks}) == 2
    assert all(psutil.pid_exists(rank.pid) for rank in ranks)
    resolved = two.settings()["resolved"]
    assert resolved["tp_size"] == 2
    cut = [re.sub(r"\d+", "*", weight.name.removesuffix(".weight")) in resolved["tp_plan"] for weight in MODEL.shape.parameters()]
    held = sum(4 * weight.elements // (2 if split else 1) for weight, split in zip(MODEL.shape.parameters(), cut, strict=True))
    # Norms are whole on each rank, the seven matrices of each of the four layers never are.
    assert sum(cut) >= 28
    assert not any(split for weight, split in zip(MODEL.shape.parameters(), cut, strict=True) if "norm" in weight.name)
    assert [rank.weights_bytes for rank in ranks] == [held, held]
    assert [rank.weights_bytes for rank in single["ranks"]] == [single["memory"].weights_bytes]
    assert two.memory().weights_bytes == held
    assert two.memory().live_bytes - held <= 1 << 16


@pytest.mark.parametrize("rank_0_notices", [True, False])
def test_a_killed_rank_is_named_and_the_next_request_starts_anew(two, single, prompts, folder, rank_0_notices):
    """Rank 0 is in the middle of operations that it shares with the other, or in one that never ends."""
    before = members(two)
    lost = two.ranks()[1].pid
    loads = two.loads
    threading.Timer(0.5, os.kill, (lost, signal.SIGKILL)).start()
    started = time.monotonic()
    if rank_0_notices:
        request = partial(two.generate, prompts, max_tokens=1000, ignore_eos=True)
    else:
        request = partial(two.run, f"{folder / 'probes.py'}::sleep", seconds=60)
    with pytest.raises(EngineDiedError, match=rf"rank 1 \(pid {lost}\) was killed by SIGKILL during or after '(generate|run)'"):
        request()
    assert time.monotonic() - started < 20
    assert not running(before)
    assert tokens(two.generate(prompts, max_tokens=32)) == tokens(single["engine"])
    assert two.loads == loads + 1


def test_a_stopped_rank_is_a_hang_and_nothing_is_left_of_it(two, prompts):
    before = members(two)
    assert len(before) == 2
    replica = two._replicas[0]
    replica.launch = replace(replica.launch, timeout=4.0)
    os.kill(two.ranks()[1].pid, signal.SIGSTOP)
    with pytest.raises(EngineHungError, match="said nothing for 4 s during 'generate'"):
        two.generate(prompts, max_tokens=32)
    assert not running(before)
