"""Variants of a cell: which mean something, what they are started with, and who holds the accelerator meanwhile."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from pytest_llminfer.errors import EngineError, UnsupportedError
from pytest_llminfer.families.execution_modes.prefix_answers import PREFIX_PROMPTS, prefix_prompts
from pytest_llminfer.families.execution_modes.texts import TEXTS, open_texts
from pytest_llminfer.families.execution_modes.variants import LONG_TOKENS, WIDE_PROMPTS, KVVariants, Sizes, Variant, long_prompts
from pytest_llminfer.families.tokens.observe import Greedy
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.engine import EngineInfo
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.observations.kv_cache import CacheCounters, KVPool
from pytest_llminfer.spec import EngineSpec

MODEL = Model("reference")
POOL = KVPool(100, 16, 1600, "bfloat16", 100 * 16 * 2048, 2048, 512)


class Fake:
    """An engine that answers one token, and notes in ``log`` what became of it."""

    def __init__(
        self,
        log: Any,
        name: str = "cell",
        device: str = "cpu",
        args: dict[Any, Any] | None = None,
        spec: Any = None,
        ignores: tuple[str, ...] = (),
        model: Model = MODEL,
    ) -> None:
        self.log, self.name, self.model = log, name, model
        self.spec = spec or EngineSpec("vllm")
        self.engine_args = args or {}
        self.info = EngineInfo("bf16", "bf16", device, device, 1, ())
        self._ignores = ignores

    def supports(self, capability: Any) -> bool:
        return capability in ("kv_pool", "cache_counters")

    def kv_pool(self) -> KVPool:
        return POOL

    def settings(self) -> dict[Any, Any]:
        return {"resolved": {name: None if name in self._ignores else value for name, value in self.engine_args.items()}}

    def cache_counters(self) -> CacheCounters:
        return CacheCounters(preemptions=3)

    def generate(self, prompts: Any, **_: Any) -> list[Any]:
        self.log.append(f"{self.name} answers {len(prompts)}")
        return [Generation((5,), "length", top_ids=np.array([[5]]), top_logprobs=np.zeros((1, 1))) for _ in prompts]

    def close(self) -> None:
        self.log.append(f"{self.name} ends")

    def restart(self) -> None:
        self.log.append(f"{self.name} starts")


def variants(
    log: list[Any], device: str = "cpu", ignores: tuple[str, ...] = (), *, asked_for: bool = True, **cell: Any
) -> KVVariants:
    engine = Fake(log, device=device, args={"seed": 1}, **cell)
    prompts = MODEL.prompts(8)
    answers = [Generation((5,), "length", top_ids=np.array([[5]]), top_logprobs=np.zeros((1, 1))) for _ in prompts]
    greedy = Greedy(prompts, answers, answers, 0.0, "bf16")

    def launch(spec: Any, model: Any, args: Any, variables: Any) -> Fake:
        log.append(f"variant starts with {args} {variables} {spec.kv_dtype}")
        return Fake(log, "variant", device, args, spec, ignores, model)

    return KVVariants(cast("Any", engine), greedy, cast("Any", launch), asked_for=asked_for)


CHUNKS = Variant("chunks", {"vllm": {"max_num_batched_tokens": 64}})
FP8 = Variant("kv-fp8", {"vllm": {}}, kv_dtype="fp8")


def test_a_variant_has_the_arguments_of_the_cell_and_its_own_and_is_started_once() -> None:
    log: list[Any] = []
    kept = variants(log)
    found = kept.ask(CHUNKS)
    assert kept.ask(CHUNKS) is found
    kept.close()
    assert log == [
        "variant starts with {'seed': 1, 'max_num_batched_tokens': 64} {} auto",
        *("variant answers 8", f"variant answers {TEXTS}", "variant ends"),
    ]
    assert found.counters == CacheCounters(preemptions=3)


def test_on_a_gpu_the_cell_makes_room_and_comes_back() -> None:
    log: list[Any] = []
    kept = variants(log, "cuda")
    kept.ask(CHUNKS)
    kept.ask(FP8)
    kept.close()
    assert [line.split(" with")[0] for line in log] == [
        # What a cache of fewer bits is compared with is asked for before the cell ends: nothing is loaded twice for it.
        *(f"cell answers {WIDE_PROMPTS}", "cell ends"),
        *("variant starts", "variant answers 8", f"variant answers {TEXTS}", "variant ends"),
        *("variant starts", f"variant answers {WIDE_PROMPTS}", "variant ends", "cell starts"),
    ]
    assert log[-4].endswith("fp8")


def test_a_tiny_pool_is_made_from_the_prompts_at_hand() -> None:
    log: list[Any] = []
    variants(log).ask(Variant("tiny", {"vllm": lambda sizes: {"blocks": sizes.tiny_blocks, "tokens": sizes.tiny_tokens}}))
    prompt = max(map(len, MODEL.prompts(8)))
    blocks = 2 * -(-prompt // 16)
    assert blocks * 16 < 2 * (prompt + 48)  # no room for two answers
    assert f"'blocks': {blocks}, 'tokens': {blocks * 16}" in log[0]


@pytest.mark.parametrize(("block", "blocks"), [(1, 164), (16, 12), (128, 6)])
def test_two_prompts_fit_into_a_tiny_pool_and_not_their_answers(block: int, blocks: int) -> None:
    assert Sizes(82, 50, block).tiny_blocks == blocks


@pytest.mark.parametrize(
    ("variant", "cell", "reason"),
    [
        (CHUNKS, {"asked_for": False}, "--kv-variants starts it"),
        (Variant("x", {"sglang": {}}), {}, "no engine arguments for vllm"),
        (Variant("x", {"vllm": {}}, gpu=True), {}, "changes nothing without a GPU"),
        (FP8, {"spec": EngineSpec("vllm", kv_dtype="fp8_e5m2")}, "a cache of fp8_e5m2 already"),
    ],
)
def test_what_means_nothing_is_a_visible_skip(variant: Variant, cell: Any, reason: str) -> None:
    log: list[Any] = []
    with pytest.raises(UnsupportedError, match=reason):
        variants(log, **cell).ask(variant)
    assert not log


def test_an_argument_that_is_not_in_force_is_an_error_and_leaves_no_engine() -> None:
    log: list[Any] = []
    with pytest.raises(EngineError, match="max_num_batched_tokens=64, and None is in force"):
        variants(log, ignores=("max_num_batched_tokens",)).ask(CHUNKS)
    assert log[-1] == "variant ends"


def test_a_long_context_needs_a_gpu_and_a_model_that_has_it() -> None:
    with pytest.raises(UnsupportedError, match="need a GPU"):
        variants([]).long(FP8)
    with pytest.raises(UnsupportedError, match="no room for 16,384 tokens"):
        variants([], "cuda").long(FP8)
    log: list[Any] = []
    model = Model("qwen2.5-7b", weights="dummy")
    found = variants(log, "cuda", model=model).long(FP8)
    assert len(found.long) == len(found.long_reference) == 8
    assert log.count("cell answers 8") == log.count("variant answers 8") == 1
    assert {len(prompt) for prompt in long_prompts(model)} == {LONG_TOKENS}


@pytest.mark.parametrize("block", [1, 16, 128])
def test_prompts_of_the_prefix_tests_begin_differently_and_hold_whole_blocks(block: int) -> None:
    for model in (MODEL, Model("qwen2.5-7b", weights="dummy")):
        prompts = prefix_prompts(model, block)
        assert len(prompts) == len({prompt[0] for prompt in prompts}) == len({len(prompt) for prompt in prompts}) == PREFIX_PROMPTS
        assert all((len(prompt) - 1) // block >= 2 for prompt in prompts)


def test_open_texts_stop_halfway_and_differ() -> None:
    for model in (MODEL, Model("qwen2.5-7b", weights="dummy")):
        texts = open_texts(model)
        assert len(texts) == len({tuple(text) for text in texts}) == TEXTS
        assert min(map(len, texts)) >= 8
    assert not any(MODEL.decode(text).endswith("?") for text in open_texts(MODEL))
