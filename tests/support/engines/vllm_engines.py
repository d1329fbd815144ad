"""What the tests of the vLLM backend share: engines on the reference model, and what transformers answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.families.execution_modes.rounding import Errors, check_rounding
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome, Verdict

MODEL = Model("reference")
SHAPE = MODEL.shape
POOL = 64 << 20
NORM = "model.layers.1.input_layernorm.weight"


def start(
    folder: Path, python: str, progress: Callable[..., Any] | None = None, engine_args: dict[str, Any] | None = None, **cell: Any
) -> Engine:
    spec = EngineSpec("vllm", environment=python, **cell)
    arguments = {"kv_cache_memory_bytes": POOL, **(engine_args or {})}
    return Engine(Launch(spec, MODEL, arguments, {}, timeout=240, log=folder / f"{spec.tp}.log", progress=progress))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return MODEL.prompts(8)


@pytest.fixture(scope="module")
def reference(folder: Path, prompts: list[list[int]]) -> Any:
    """What transformers answers in the same dtype: generations, scores of the prompts with their answers, and of those the scores
    that the same weights give in fp32.
    """
    engine = Engine(Launch(EngineSpec("transformers"), MODEL, {}, {}, 240, folder / "transformers.log"))
    generations = engine.generate(prompts, max_tokens=120, logprobs=8)
    sequences = whole(prompts, generations)
    scores = engine.score(sequences)
    exact = engine.score_listed(sequences, [np.array(sequence[1:], np.int32)[:, None] for sequence in sequences])
    engine.close()
    return generations, scores, [listed[:, 0] for listed in exact]


def whole(prompts: list[list[int]], generations: list[Generation]) -> list[Any]:
    return [[*prompt, *answer.token_ids] for prompt, answer in zip(prompts, generations, strict=True)]


def tokens(generations: list[Generation]) -> list[Any]:
    return [generation.token_ids for generation in generations]


def outcome(candidate: list[Generation], reference: Any) -> Outcome:
    return check_same_greedy_tokens(candidate=candidate, reference=reference, dtype="bf16", claim="").outcome


def beside_fp32(engine: Engine, prompts: list[list[int]], reference: Any) -> dict[str, Verdict]:
    """Scores of given tokens, down to -19 nats, beside those of the same weights in fp32: two claims, and a wrong one."""
    generations, expected, exact = reference
    sequences = whole(prompts, generations)
    prefill, decode = engine.score(sequences), engine.score(sequences, cache_path="decode")
    assert {scores.dtype for scores in prefill + decode} == {np.dtype(np.float32)}
    assert max(scores.min() for scores in prefill) < -10

    def judged(candidate: Any, other: Any) -> Verdict:
        own, theirs = ([np.square(ours - wide) for ours, wide in zip(side, exact, strict=True)] for side in (candidate, other))
        return check_rounding(errors=Errors(own, theirs, "beside fp32"), dtype="bf16", claim="no farther from fp32 than the other")

    return {
        "decode from prefill": judged(decode, prefill),
        "prefill from transformers": judged(prefill, expected),
        "scores of the tokens beside": judged([np.roll(scores, 1) for scores in prefill], expected),
    }


def fp32_flops_per_second() -> float:
    """Of one matrix product in NumPy, here and now."""
    matrix = np.ones((512, 512), np.float32)
    started = time.perf_counter()
    assert (matrix @ matrix)[0, 0] == len(matrix)
    return float(2 * len(matrix) ** 3 / (time.perf_counter() - started))
