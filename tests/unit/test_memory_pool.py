"""The memory of keys and values, and a device in its parts, against lines that others have published."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import BadInputError, InvalidSpecError, UnsupportedError
from pytest_llminfer.predict.budget import DeviceBudget
from pytest_llminfer.predict.buffers import rope_bytes
from pytest_llminfer.predict.kv import BITS, KVGroup, bytes_per_token, concurrency, kv_groups, pool_blocks
from pytest_llminfer.predict.weights import stored_bytes
from tests.support.bundled_shapes import GIB, bundled, held


@pytest.mark.parametrize(("name", "per_token"), [("llama-3-8b", 131_072), ("qwen2.5-7b", 57_344), ("gpt2", 36_864)])
def test_a_token_takes_the_published_bytes(name: str, per_token: int) -> None:
    config, shape = bundled(name)
    groups = kv_groups(config, shape)
    assert bytes_per_token(groups, "bf16") == shape.kv_bytes_per_token("bf16") == per_token
    assert bytes_per_token(groups, "fp8") == per_token // 2
    assert bytes_per_token(groups, "q8_0") == per_token * 17 // 32


def test_more_ranks_than_kv_heads_hold_each_head_several_times() -> None:
    config, shape = bundled("qwen2.5-7b")
    groups = kv_groups(config, shape)
    assert [bytes_per_token(groups, "bf16", tp=tp) for tp in (1, 2, 4, 8)] == [57344, 28672, 14336, 14336]


def test_25626_blocks_are_12_51_sequences_of_32768() -> None:
    config, shape = bundled("qwen2.5-7b")
    groups = kv_groups(config, shape)
    assert f"{float(concurrency(25_626, groups, 32_768)):.2f}" == "12.51"
    pool = 25_626 * 16 * 57_344
    assert pool / GIB == pytest.approx(21.90, abs=5e-3)
    assert pool_blocks(pool, groups, "bf16") == pool_blocks(pool + 16 * 57_344 - 1, groups, "bf16") == 25_626


def test_24_gb_times_090_in_its_parts() -> None:
    """Llama-3.1-8B on a card of 23.65 GiB: 21.28 usable, 14.99 weights, 5.01 for keys and values, the rest 1.285
    (docs/methods.md#published-log-lines)."""
    config, shape = bundled("llama-3.1-8b")
    weights = stored_bytes(held("llama-3.1-8b", engine="vllm")) + rope_bytes(config, shape, engine=profile("vllm"), dtype="bf16")
    rest = round(1.285 * GIB)
    budget = DeviceBudget(total=round(23.65 * GIB), utilization=0.9, weights=weights, activation_peak=rest)
    assert int(budget.usable / GIB * 100) / 100 == 21.28
    assert budget.kv_pool / GIB == pytest.approx(5.01, abs=5e-3)
    blocks = pool_blocks(round(5.01 * GIB), kv_groups(config, shape), "bf16")
    assert (blocks, blocks * 16) == (2565, 41_040)  # printed as 41,042: the pool in tokens, before whole blocks
    assert float(concurrency(blocks, kv_groups(config, shape), 8192)) == pytest.approx(5.0, abs=0.02)
    assert budget.fits
    assert not DeviceBudget(total=16 * GIB, utilization=0.9, weights=weights).fits


@given(
    total=st.integers(1, 2**38), share=st.floats(0.1, 1), parts=st.tuples(*[st.integers(0, 2**34)] * 4),
)  # fmt: skip
def test_the_parts_of_a_device_add_up(total: int, share: float, parts: tuple[Any, ...]) -> None:
    budget = DeviceBudget(total, share, *parts)
    assert sum(parts) + budget.kv_pool == budget.usable
    assert total * share <= budget.usable <= total * share + 1


def test_sglang_leaves_the_dynamic_part_free() -> None:
    """``free after loading - free before x (1 - mem_fraction_static)``: 80 GiB - 100 GiB x 0.1, of a device of 101 GiB."""
    budget = DeviceBudget(total=101 * GIB, before=GIB, utilization=0.9, weights=20 * GIB)
    assert budget.kv_pool == pytest.approx(70 * GIB, abs=1)
    assert budget.usable == pytest.approx(90 * GIB, abs=1)


def test_layers_with_a_window_keep_no_more_than_that() -> None:
    """Mistral-7B v0.1: all layers keep the latest 4096 tokens."""
    config, shape = bundled("mistral-7b")
    groups = kv_groups(config, shape)
    assert groups == (KVGroup(32, 8, 128, 4096),)
    assert [groups[0].tokens_held(length) for length in (17, 4096, 32_768)] == [17, 4096, 4096]
    assert concurrency(4096, groups, 32_768) == 16


@pytest.mark.parametrize(("in_flight", "blocks"), [(16_384, 1281), (32_768, 2049), (8_192, 769)])
def test_a_window_in_vllm_keeps_what_is_still_being_computed(in_flight: int, blocks: int) -> None:
    """Mistral-7B v0.1: ``cdiv(min(4095 + in flight, 32768), 16) + 1`` blocks a sequence, of which fewer do not hold one."""
    config, shape = bundled("mistral-7b")
    groups = kv_groups(config, shape)
    assert concurrency(blocks, groups, 32_768, in_flight=in_flight) == 1
    assert concurrency(blocks - 1, groups, 32_768, in_flight=in_flight) < 1
    whole = kv_groups(*bundled("llama-3-8b"))
    assert concurrency(2048, whole, 32_768, in_flight=in_flight) == concurrency(2048, whole, 32_768) == 1


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, {None: 28}),  # use_sliding_window is false
        ({"use_sliding_window": True, "max_window_layers": 20}, {None: 20, 131_072: 8}),
        ({"use_sliding_window": True, "max_window_layers": 28}, {None: 28}),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 14}, {None: 14, 131_072: 14}),
        ({"sliding_window": None, "use_sliding_window": True}, {None: 28}),
    ],
)
def test_which_layers_have_a_window_is_what_the_configuration_says(changes: Any, windows: dict[int | None, int]) -> None:
    config, shape = bundled("qwen2.5-7b", **changes)
    groups = kv_groups(config, shape)
    assert {group.window: group.layers for group in groups} == windows


def test_concurrency_with_windows_counts_each_layer_by_itself() -> None:
    groups = (KVGroup(1, 1, 1), KVGroup(3, 1, 1, window=16))
    # 64 tokens: 4 blocks of the full layer and one of each of the three others, out of 4 layers' worth a block.
    assert float(concurrency(7, groups, 64)) == 7 * 4 / (4 + 3)


def test_vllm_fills_layers_of_two_kinds_up_to_whole_bundles() -> None:
    """20 layers in full and 8 with a window are 3 + 1 bundles of 8: 24 layers' worth of the first, 8 of the second."""
    groups = (KVGroup(20, 1, 1), KVGroup(8, 1, 1, window=1024))
    # 4,096 tokens: 256 blocks in full; min(1023 + 2048, 4096) tokens and one block with a window.
    assert concurrency(1000, groups, 4096, in_flight=2048) == Fraction(1000 * 28, 24 * 256 + 8 * 193)
    # 13 and 12 layers are two bundles of 13.
    alike = (KVGroup(13, 1, 1), KVGroup(12, 1, 1, window=1024))
    assert concurrency(1000, alike, 4096, in_flight=2048) == Fraction(1000 * 25, 13 * 256 + 13 * 193)


def test_a_wrong_window_or_dtype_is_refused_by_name() -> None:
    with pytest.raises(BadInputError, match="sliding_window"):
        kv_groups(*bundled("mistral-7b", sliding_window="wide"))
    with pytest.raises(InvalidSpecError, match="unknown KV dtype 'int3'"):
        KVGroup(1, 1, 1).bytes_per_token("int3")
    with pytest.raises(UnsupportedError, match="use one of: none, nf4"):
        held("llama-3-8b", quantization="exl2")
    assert set(BITS) >= {"fp8", "bf16"}
