"""Several checkpoints in vLLM, one after the other in one process: run by an interpreter that has vLLM.

``vllm_formats.py TASK ANSWER``: TASK is a JSON list of {model, quantization, engine_args}, beside "prompts"; ANSWER is written. A
cell may name a "fault": a function of this file that patches vLLM while the engine loads; such an engine is asked for no tokens.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
# A processor with AMX would repack 4-bit weights in a way of its own.
os.environ["VLLM_CPU_INT4_W4A8"] = "0"


def load_package() -> None:
    """This repository's package, and nothing that lies beside it."""
    package = Path(__file__).resolve().parents[3] / "pytest_llminfer"
    spec = importlib.util.spec_from_file_location(
        "pytest_llminfer", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pytest_llminfer"] = module
    spec.loader.exec_module(module)


def plan_a_small_pool() -> mock._patch[Any]:
    """vLLM plans a tenth fewer blocks than the memory it was given has room for, and takes as much less."""
    from vllm.v1.core import kv_cache_utils

    planned = kv_cache_utils.may_override_num_blocks
    return mock.patch.object(kv_cache_utils, "may_override_num_blocks", lambda config, blocks: planned(config, blocks) * 9 // 10)


def take_a_small_pool() -> mock._patch[Any]:
    """The worker takes a tenth less memory for keys and values than was planned, and the scheduler does not know."""
    from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    take = GPUModelRunner.initialize_kv_cache_tensors

    def smaller(runner: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        size = config.kv_cache_tensors[0].size * 9 // 10
        return take(runner, get_kv_cache_config_from_groups(runner.vllm_config, config.kv_cache_groups, size), *args, **kwargs)

    return mock.patch.object(GPUModelRunner, "initialize_kv_cache_tensors", smaller)


def observe(cell: dict[str, Any], prompts: list[list[int]]) -> dict[str, Any]:
    """What one engine says of itself; it is gone afterwards."""
    from vllm.distributed import cleanup_dist_env_and_memory

    from pytest_llminfer.observations.generation import Sampling
    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.vllm.backend import VllmBackend

    arguments = {"kv_cache_memory_bytes": 64 << 20, "max_model_len": 512, **cell["engine_args"]}
    backend = VllmBackend(EngineSpec("vllm", quantization=cell["quantization"]), cell["model"], arguments, lambda *_: None)
    with globals()[cell["fault"]]() if "fault" in cell else contextlib.nullcontext():
        info = backend.load()
    sampling = Sampling(max_tokens=16).to_dict()
    answer = {
        "dtype": info["dtype"],
        "layout": backend.layout(),
        "resolved": backend.settings()["resolved"],
        "memory": backend.memory(),
        "kv_pool": backend.kv_pool(),
        "tokens": [],
        "missing_kernel": "",
    }
    if "fault" not in cell:
        try:
            answer["tokens"] = [output["token_ids"] for output in backend.generate(prompts=prompts, sampling=sampling)["outputs"]]
        except AttributeError as error:
            answer["missing_kernel"] = str(error)
    backend._live.llm.llm_engine.engine_core.shutdown()
    del backend
    cleanup_dist_env_and_memory()
    return answer


if __name__ == "__main__":
    load_package()
    importlib.import_module("vllm")
    # vLLM looks through everything that its imports left behind eleven times an engine: two thirds of its time here.
    collect = gc.collect
    gc.collect = lambda generation=2: collect(min(generation, 0))
    task = json.loads(Path(sys.argv[1]).read_text())
    found = [observe(cell, task["prompts"]) for cell in task["cells"]]
    Path(sys.argv[2]).write_text(json.dumps(found))
