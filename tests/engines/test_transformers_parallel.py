"""Tensor parallelism of the transformers backend: two processes that answer as one does, and whose loss is told."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import EngineDiedError, EngineHungError, UnsupportedError
from pytest_llminfer.families.layout.ranks import check_rank_layouts
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome, Verdict
from tests.support.engines.processes import left, members

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

def spoil(model, *, how):
    import torch
    owner = model.model.layers[2].mlp.down_proj
    part = owner.weight.to_local() if hasattr(owner.weight, "to_local") else owner.weight
    part = part.detach().contiguous()
    both = [torch.empty_like(part) for _ in range(2)]
    torch.distributed.all_gather(both, part)
    made = {"same part": both[0], "whole": torch.cat(both, 1), "float16": part.half()}[how]
    # In a list: a parameter that hangs on a module would be one of its own.
    model.kept = [owner.weight]
    if os.environ["RANK"] == "1":
        owner.weight = torch.nn.Parameter(made, requires_grad=False)

def hashes(model):
    import torch
    from pytest_llminfer.worker.backends.transformers.content import digest
    given = torch.randn(700, 768)
    for name in ("bfloat16", "float8_e4m3fn", "int8", "float32"):
        weight = given.mul(20).to(getattr(torch, name))
        bytes_ = weight.view(torch.uint8)
        changed, swapped = bytes_.clone(), bytes_.clone()
        changed[-1, -1] ^= 1
        swapped[[0, 699]] = swapped[[699, 0]]
        assert digest(weight) == digest(weight.clone()) == digest(bytes_) == digest(weight.T)
        assert digest(weight[:, :300]) == digest(weight[:, :300].contiguous())
        assert len({digest(weight), digest(changed), digest(swapped), digest(weight[:350]), digest(weight[350:])}) == 5
    assert digest(torch.zeros(8)) != digest(torch.zeros(16))
    assert digest(torch.ones(3, dtype=torch.uint8)) != digest(torch.ones(5, dtype=torch.uint8))
    return digest(torch.empty(0)), digest(torch.empty(4, device="meta"))

def mend(model):
    model.model.layers[2].mlp.down_proj.weight = model.kept.pop()
"""


def start(folder: Path, *, tp: int, timeout: float = 120, **cell: Any) -> Engine:
    spec = EngineSpec("transformers", **{"dtype": "fp32", "tp": tp, **cell})
    return Engine(Launch(spec, MODEL, engine_args={}, variables={}, timeout=timeout, log=folder / f"tp{tp}.log"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "probes.py").write_text(PROBES)
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return MODEL.prompts(4)


@pytest.fixture(scope="module")
def single(folder: Path, prompts: list[list[int]]) -> dict[Any, Any]:
    """What one process answers, by request."""
    engine = start(folder, tp=1)
    found = answers(engine, prompts)
    engine.close()
    return found


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[Engine]:
    engine = start(folder, tp=2)
    yield engine
    engine.close()


def answers(engine: Engine, prompts: list[list[int]]) -> dict[str, Any]:
    generated = engine.generate(prompts, max_tokens=32, logprobs=4)
    sequences = [prompt + list(answer.token_ids) for prompt, answer in zip(prompts[:2], generated, strict=False)]
    return {
        "engine": generated,
        **{cache_path: engine.generate(prompts[:1], max_tokens=8, cache_path=cache_path) for cache_path in ("loop", "no_cache")},
        **{cache_path: engine.score(sequences[:1], cache_path=cache_path) for cache_path in ("prefill", "decode")},
        "cache": engine.kv_cache(prompts[0], extend=3),
        "memory": engine.memory(),
        "ranks": engine.ranks(),
    }


def tokens(generations: Any) -> list[Any]:
    return [generation.token_ids for generation in generations]


def test_two_ranks_answer_as_one_process_does(single: Any, two: Engine, prompts: list[list[int]]) -> None:
    found = answers(two, prompts)
    for cache_path in ("engine", "loop", "no_cache"):
        assert tokens(found[cache_path]) == tokens(single[cache_path])
    for one, other in zip(found["engine"], single["engine"], strict=True):
        np.testing.assert_allclose(one.top_logprobs, other.top_logprobs, atol=1e-4)
    for cache_path in ("prefill", "decode"):
        np.testing.assert_allclose(found[cache_path][0], single[cache_path][0], atol=1e-4)
    # Heads and bytes of the whole model, although each rank holds one of its two KV heads.
    assert found["cache"] == single["cache"]
    assert two.info.device_count == 2


def test_a_wrong_weight_on_one_rank_changes_the_tokens(single: Any, two: Engine, prompts: list[list[int]], folder: Path) -> None:
    probe = f"{folder / 'probes.py'}::scale"
    # The probe is called on both ranks, and rank 0 is who answers.
    assert two.run(probe, rank=1, factor=-1.0) == [0, [256, 384]]
    assert tokens(two.generate(prompts, max_tokens=32)) != tokens(single["engine"])
    two.run(probe, rank=1, factor=-1.0)
    assert tokens(two.generate(prompts, max_tokens=32)) == tokens(single["engine"])


def test_each_rank_holds_what_the_plan_gives_it(single: Any, two: Engine) -> None:
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


def judged(engine: Engine) -> Verdict:
    layouts, plan = engine.rank_layouts(), engine.settings()["resolved"]["tp_plan"]
    return check_rank_layouts(
        ranks=layouts, shape=MODEL.shape, dtype="fp32", quantization="none", engine=profile("transformers"), tp=2, plan=plan
    )


DOWN = "model.layers.2.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("whole", f"tp rank 1: {DOWN}: not sharded: the whole [256, 768] instead of a part [256, 384]"),
        ("float16", f"tp rank 1: {DOWN}: dtype float16 instead of float32, stored_bytes 196,608 instead of 393,216"),
        ("same part", f"{DOWN}: the same part on tp rank 0 and tp rank 1: their bytes are equal"),
    ],
    ids=["whole", "another dtype", "same part"],
)
def test_a_rank_that_stores_its_part_otherwise_is_named(two: Engine, folder: Path, how: str, said: str) -> None:
    assert judged(two).outcome is Outcome.PASS
    two.run(f"{folder / 'probes.py'}::spoil", how=how)
    verdict = judged(two)
    assert (verdict.outcome, verdict.details) == (Outcome.FAIL, (said,))
    two.run(f"{folder / 'probes.py'}::mend")
    assert judged(two).outcome is Outcome.PASS
    with pytest.raises(UnsupportedError, match="no rank holds the whole model"):
        two.layout()


def test_contents_that_differ_in_one_bit_or_in_their_order_have_other_hashes(two: Engine, folder: Path) -> None:
    assert two.run(f"{folder / 'probes.py'}::hashes") == ["", ""]


@pytest.mark.parametrize("rank_0_notices", [True, False])
def test_a_killed_rank_is_named_and_the_next_request_starts_anew(
    two: Engine, single: Any, prompts: list[list[int]], folder: Path, rank_0_notices: bool
) -> None:
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
    assert not left(before)
    assert tokens(two.generate(prompts, max_tokens=32)) == tokens(single["engine"])
    assert two.loads == loads + 1


def test_a_stopped_rank_is_a_hang_and_nothing_is_left_of_it(two: Engine, prompts: list[list[int]]) -> None:
    before = members(two)
    assert len(before) == 2
    replica = two._replicas[0]
    replica.launch = replace(replica.launch, timeout=4.0)
    os.kill(two.ranks()[1].pid, signal.SIGSTOP)
    with pytest.raises(EngineHungError, match="said nothing for 4 s during 'generate'"):
        two.generate(prompts, max_tokens=32)
    assert not left(before)
