"""The checkpoints under assets/ in real engines: each is held as declared of that engine, and one with a fault is named."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.engines.environments.cache import cache_folder
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.layout.check import check_layout
from pytest_llminfer.families.memory.check import check_weights, predict_weights
from pytest_llminfer.families.memory.profile import ProfileLine, check_profile, pinned_capacity, profile_lines
from pytest_llminfer.models.model import Model
from pytest_llminfer.models.stored import declared_groups
from pytest_llminfer.observations.kv_cache import KVPool
from pytest_llminfer.observations.layout import Layout
from pytest_llminfer.observations.memory import MemoryReport
from pytest_llminfer.predict.buffers import rope_bytes
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome, Verdict
from tests.support.faults import checkpoints
from tests.support.faults.checkpoints import LEFT
from tests.support.paths import ASSETS, FAULTS, PROGRAMS
from tests.support.processor import AVX512

REFERENCE = Model("reference")
VLLM = PROGRAMS / "vllm_formats.py"
VLLM_FORMATS = ("w8a8", "w4a16", "fp8", "gptq", "awq")
FOUR_BITS = ("w4a16", "gptq", "awq", "grouped")
GROUP = 32
SMALL_POOLS = {
    "plan_a_small_pool": ("KV capacity", "KV pool"),
    "take_a_small_pool": ("KV bytes a token", "KV pool"),
}
"""A KV pool a tenth too small, by the lines of the profile that are then outside their gates: the engine knows it, or does not."""
IGNORED = "int8_per_channel_weight_only"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    engines = []

    def start(engine: str, path: Path, *, python: str = "", **cell: Any) -> Engine:
        launch = Launch(
            spec=EngineSpec(engine, environment=python, model=str(path), **cell),
            model=Model(str(path)),
            engine_args={},
            variables={},
            timeout=240,
            log=tmp_path_factory.mktemp("worker") / "log",
        )
        engines.append(Engine(launch))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def judged(engine: Engine) -> Verdict:
    layout, spec = engine.layout(), engine.spec
    return check_layout(
        parameters=layout.parameters,
        shape=engine.model.shape,
        dtype=engine.info.dtype,
        quantization=spec.quantization,
        tied=layout.tied,
        engine=profile(spec.engine),
        group_size=declared_groups(engine.model.config),
    )


def weighed(engine: Engine) -> Verdict:
    of: dict[str, Any] = {
        "dtype": engine.info.dtype,
        "quantization": engine.spec.quantization,
        "engine": profile(engine.spec.engine),
        "device": "cpu",
    }
    size = declared_groups(engine.model.config)
    return check_weights(report=engine.memory(), predicted=predict_weights(shape=engine.model.shape, **of, group_size=size))


def answers(engine: Engine) -> int:
    """How many of twelve prompts are answered to the end."""
    return sum(answer.finish_reason == "stop" for answer in engine.generate(REFERENCE.prompts(12), max_tokens=100))


def test_transformers_computes_with_a_checkpoint_that_came_quantized(start: Callable[..., Engine], tmp_path: Path) -> None:
    engine = start("transformers", checkpoints.regroup(ASSETS / "w4a16", tmp_path / "w4a16", GROUP), quantization="w4a16")
    before = engine.layout()
    assert judged(engine).outcome is Outcome.PASS
    assert weighed(engine).outcome is Outcome.PASS
    assert answers(engine) >= 10
    # Nothing about the weights may depend on whether they were used.
    assert engine.layout() == before
    engine.run(f"{FAULTS / 'quantized_weights.py'}::never_quantized")
    verdict = judged(engine)
    assert verdict.outcome is Outcome.FAIL
    assert [line.partition(": ")[::2] for line in verdict.details] == [
        (f"{LEFT}.weight_scale", "missing"),
        (f"{LEFT}.weight_shape", "missing"),
    ]


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_transformers_computes_with_gptqmodel_where_that_is_installed(start: Callable[..., Engine], name: str) -> None:
    python = os.environ.get("LLMINFER_TEST_GPTQMODEL", "")
    made = sorted((cache_folder() / "tool-environments").glob("gptqmodel-*/bin/python"))
    if not (python or made):
        pytest.skip("no environment of gptqmodel: tools/quantize.py --format gptq makes one (1.6 GB, minutes)")
    engine = start("transformers", ASSETS / name, python=python or str(made[-1]), quantization=name)
    before = engine.layout()
    assert judged(engine).outcome is Outcome.PASS
    assert weighed(engine).outcome is Outcome.PASS
    assert answers(engine) >= 10
    assert engine.layout() == before


@pytest.mark.parametrize(
    ("path", "quantization", "says"),
    [
        (ASSETS / "w8a8", "none", "name the cell for what it is: quantization=w8a8"),
        (ASSETS / "w8a8", "w4a16", "is stored as w8a8|quantization=w8a8"),
        (ASSETS / "gptq", "nf4", "is quantized already; quantization=nf4 needs an unquantized model"),
        (Path(REFERENCE.path), "awq", "is not quantized, and transformers does not quantize to awq itself"),
    ],
)
def test_transformers_refuses_a_checkpoint_that_is_not_what_the_cell_names(
    start: Callable[..., Engine], path: Path, quantization: str, says: str
) -> None:
    with pytest.raises(BadInputError, match=says):
        start("transformers", path, quantization=quantization)


@pytest.mark.parametrize(("mixture", "quantization"), [("F16", "none"), ("Q8_0", "q8_0"), ("Q4_K_M", "q4_k_m")])
def test_llama_cpp_holds_a_file_as_it_is(
    start: Callable[..., Engine], llamacpp_python: str, mixture: str, quantization: str
) -> None:
    engine = start("llamacpp", ASSETS / "gguf" / f"reference-{mixture}.gguf", python=llamacpp_python, quantization=quantization)
    assert judged(engine).outcome is Outcome.PASS
    assert weighed(engine).outcome is Outcome.PASS
    assert answers(engine) >= 10


def test_llama_cpp_is_caught_with_other_types_than_the_file_names(
    start: Callable[..., Engine], llamacpp_python: str, tmp_path: Path
) -> None:
    file = checkpoints.relabel(ASSETS / "gguf" / "reference-Q8_0.gguf", tmp_path / "other.gguf", 15)
    verdict = judged(start("llamacpp", file, python=llamacpp_python, quantization="q4_k_m"))
    assert verdict.outcome is Outcome.FAIL
    assert "model.layers.0.self_attn.q_proj.weight (and the same in 3 other layers): dtype q8_0 instead of q4_k" in str(verdict)


@pytest.fixture(scope="module")
def vllm(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What vLLM says of every format, of one that it takes and ignores, and of a checkpoint with a fault."""
    folder = tmp_path_factory.mktemp("vllm")
    faulty = checkpoints.leave_a_layer_alone(ASSETS / "w8a8", folder / "w8a8")
    cells = {name: {"model": str(ASSETS / name), "quantization": name, "engine_args": {}} for name in VLLM_FORMATS}
    cells["ignored"] = {"model": REFERENCE.path, "quantization": "none", "engine_args": {"quantization": IGNORED}}
    grouped = checkpoints.regroup(ASSETS / "gptq", folder / "grouped", GROUP)
    cells["grouped"] = {"model": str(grouped), "quantization": "gptq", "engine_args": {}}
    cells["faulty"] = {"model": str(faulty), "quantization": "w8a8", "engine_args": {}}
    for fault in SMALL_POOLS:
        cells[fault] = {"model": REFERENCE.path, "quantization": "none", "engine_args": {}, "fault": fault}
    task, answer, log = (folder / name for name in ("task.json", "answer.json", "log"))
    task.write_text(json.dumps({"prompts": REFERENCE.prompts(2), "cells": list(cells.values())}))
    with log.open("wb") as stream:
        done = subprocess.run(
            [vllm_python, str(VLLM), str(task), str(answer)],
            cwd=folder,
            stdout=stream,
            stderr=stream,
            check=False,
            timeout=500,
        )
    assert done.returncode == 0, log.read_text()[-3000:]
    return dict(zip(cells, json.loads(answer.read_text()), strict=True))


def in_vllm(found: Any, quantization: str, **declared: Any) -> Verdict:
    layout = Layout.from_message(found["layout"])
    return check_layout(
        parameters=layout.parameters,
        shape=REFERENCE.shape,
        dtype=found["dtype"],
        quantization=quantization,
        tied=layout.tied,
        engine=profile("vllm"),
        asked=found["resolved"]["quantization"] or "",
        **declared,
    )


def lacks_its_kernel(vllm: Any, name: str) -> bool:
    """Whether vLLM loaded that checkpoint and cannot multiply with it: without AVX-512, so it is of 4 bits, and of nothing else."""
    missing: str = vllm[name]["missing_kernel"]
    assert bool(missing) == (name in FOUR_BITS and not AVX512)
    assert not missing or "cpu_gemm_wna16" in missing
    return bool(missing)


@pytest.mark.parametrize("name", VLLM_FORMATS)
def test_vllm_holds_a_checkpoint_as_declared(vllm: Any, name: str) -> None:
    verdict = in_vllm(vllm[name], name)
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())
    stored = sum(parameter["stored_bytes"] for parameter in vllm[name]["layout"]["parameters"])
    assert stored == predict_weights(shape=REFERENCE.shape, dtype="bf16", quantization=name, engine=profile("vllm"), device="cpu")
    if lacks_its_kernel(vllm, name):
        return
    # The damage of a format changes an answer now and then, not its first words.
    assert [tokens[:4] for tokens in vllm[name]["tokens"]] == [tokens[:4] for tokens in vllm["ignored"]["tokens"]]


def test_groups_of_another_size_are_held_and_predicted_as_declared(vllm: Any) -> None:
    assert in_vllm(vllm["grouped"], "gptq").outcome is Outcome.FAIL
    verdict = in_vllm(vllm["grouped"], "gptq", group_size=GROUP)
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())
    stored = sum(parameter["stored_bytes"] for parameter in vllm["grouped"]["layout"]["parameters"])
    of: dict[str, Any] = {
        "shape": REFERENCE.shape,
        "dtype": "bf16",
        "quantization": "gptq",
        "engine": profile("vllm"),
        "device": "cpu",
    }
    assert stored == predict_weights(**of, group_size=GROUP) == predict_weights(**of) + 3 * 49_152
    # Every scale four times: the same weights, and so the same words as in groups of 128.
    assert lacks_its_kernel(vllm, "grouped") or vllm["grouped"]["tokens"] == vllm["gptq"]["tokens"]


def test_a_quantization_that_vllm_takes_and_ignores_is_caught(vllm: Any) -> None:
    assert vllm["ignored"]["resolved"]["quantization"] == IGNORED
    verdict = in_vllm(vllm["ignored"], "none")
    assert verdict.outcome is Outcome.FAIL
    assert [line.split(".")[4] for line in verdict.details] == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert f"left in bfloat16, although the engine was asked for {IGNORED}" in verdict.details[0]


def test_a_layer_that_vllm_left_in_16_bits_is_named(vllm: Any) -> None:
    verdict = in_vllm(vllm["faulty"], "w8a8")
    assert verdict.outcome is Outcome.FAIL
    assert len(verdict.details) == 1
    assert verdict.details[0].startswith(f"{LEFT}.weight: left in bfloat16 instead of w8a8 (")


def memory_lines(found: Any) -> tuple[ProfileLine, ...]:
    """The lines of memory of a vLLM whose pool was pinned."""
    pool, shape = KVPool.from_message(found["kv_pool"]), REFERENCE.shape
    a_token = shape.kv_bytes_per_token("bf16")
    return profile_lines(
        report=MemoryReport.from_message(found["memory"]),
        weights=predict_weights(shape=shape, dtype="bf16", quantization="none", engine=profile("vllm")),
        # Of all positions of the model, however few the engine was told to serve.
        buffers=rope_bytes(REFERENCE.config, shape, engine=profile("vllm"), dtype="bf16"),
        pool=pool,
        bytes_per_token=a_token,
        capacity=pinned_capacity(resolved=found["resolved"], pool=pool, rank_bytes_per_token=a_token),
    )


def test_a_pinned_pool_in_vllm_is_predicted_to_the_token(vllm: Any) -> None:
    verdict = check_profile(lines=memory_lines(vllm["ignored"]))
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "5/5 lines")


@pytest.mark.parametrize(("fault", "outside"), SMALL_POOLS.items())
def test_a_pool_in_vllm_that_is_a_tenth_too_small_is_named(vllm: Any, fault: Any, outside: Any) -> None:
    whole, lines = memory_lines(vllm["ignored"]), memory_lines(vllm[fault])
    assert [line.line for line in lines if not line.within] == list(outside)
    verdict = check_profile(lines=lines)
    assert verdict.outcome is Outcome.FAIL
    assert [line.partition(": ")[0] for line in verdict.details] == list(outside)
    (full,), (found,) = ([line.measured for line in each if line.line == "KV pool"] for each in (whole, lines))
    # A tenth in whole blocks, one of which is vLLM's own.
    blocks = vllm["ignored"]["kv_pool"]["num_blocks"] + 1
    assert found * blocks == full * (blocks * 9 // 10)
