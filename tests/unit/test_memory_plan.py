"""What a plan leaves for keys and values, against what was measured and what vLLM would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.models.files import SHAPES
from pytest_llminfer.predict.gpus import find_gpu
from pytest_llminfer.predict.plan import Deployment, Known, MemoryPlan, plan_memory

GIB = 2**30
PROFILE = Path(__file__).resolve().parents[2] / "baselines" / "nvidia-h200-x1" / "llama-3-8b-dummy" / "memory_profile.json"


def configuration(name: str) -> Any:
    return json.loads((SHAPES / name / "config.json").read_text())


def test_the_pool_of_a_gpu_is_the_measured_one_to_the_block() -> None:
    """Llama-3-8B in vLLM on an H200 of its own (docs/memory.md): what its log says of the rest leaves the blocks that it made."""
    lines = json.loads(PROFILE.read_text())["entries"]["vllm-none-auto-kv_auto"]["expected"]["lines"]
    measured = {line["line"]: line["measured"] for line in lines}
    known = Known(activation_peak=measured["activation peak"], non_torch=measured["non-torch"])

    def of(total: int) -> MemoryPlan:
        return plan_memory(configuration("llama-3-8b"), Deployment(profile("vllm")), total=total, known=known)

    gpu = find_gpu("H200")
    # One block is vLLM's own.
    assert abs(of(gpu.total).kv_blocks - 1 - measured["KV capacity"] // 16) <= 1
    # Of nvidia-smi's total there would be half a per cent more.
    assert 1.004 < of(gpu.listed_mib * 2**20).kv_tokens / measured["KV capacity"] < 1.006


def test_a_window_that_vllm_would_refuse_does_not_fit() -> None:
    """Mistral-7B v0.1 with batches of 8,192: 16,384 tokens in flight, 1,281 blocks a sequence, and one is vLLM's own."""
    known = Known(weights=0, activation_peak=0, non_torch=0, batched_tokens=8192)
    # Of 32,768 positions, in bf16 and in fp32.
    tables = {"vllm": 8 * 2**20, "sglang": 16 * 2**20}

    def fits(engine: str, blocks: int) -> bool:
        total = tables[engine] + blocks * 16 * 131_072
        return plan_memory(configuration("mistral-7b"), Deployment(profile(engine)), total=total, utilization=1.0, known=known).fits

    assert [fits("vllm", blocks) for blocks in (1071, 1281, 1282)] == [False, False, True]
    # SGLang keeps what lies behind the window of this architecture: 2,048 blocks' worth of tokens.
    assert [fits("sglang", blocks) for blocks in (2047, 2048)] == [False, True]


def test_a_plan_takes_what_is_known_instead_of_predicting_it() -> None:
    config = configuration("gpt2")
    known = Known(weights=1000, activation_peak=100, non_torch=10)
    plan = plan_memory(config, Deployment(profile("vllm")), total=GIB, utilization=1.0, known=known)
    assert plan.budget.kv_pool == GIB - 1110
    assert plan.context == 1024
    assert not plan.estimated
    sglang = plan_memory(config, Deployment(profile("sglang")), total=GIB, known=Known(weights=1000, non_torch=0))
    assert (sglang.budget.utilization, sglang.budget.activation_peak) == (0.88, 0)
    with pytest.raises(UnsupportedError, match="how simulated shares out a device"):
        plan_memory(config, Deployment(profile("simulated")), total=GIB)
    with pytest.raises(BadInputError, match="context must be positive"):
        plan_memory(config, Deployment(profile("vllm")), total=GIB, context=0)
