"""Several checkpoints in vLLM, one after the other in one process: run by an interpreter that has vLLM.

``vllm_formats.py TASK ANSWER``: TASK is a JSON list of {model, quantization, engine_args}, beside "prompts"; ANSWER is written.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
# A processor with AMX would repack 4-bit weights in a way of its own.
os.environ["VLLM_CPU_INT4_W4A8"] = "0"


def load_package() -> None:
    """This repository's package, and nothing that lies beside it."""
    package = Path(__file__).resolve().parents[2] / "pytest_llminfer"
    spec = importlib.util.spec_from_file_location(
        "pytest_llminfer", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["pytest_llminfer"] = module
    spec.loader.exec_module(module)


def observe(cell: dict, prompts: list[list[int]]) -> dict:
    """What one engine says of itself; it is gone afterwards."""
    from vllm.distributed import cleanup_dist_env_and_memory

    from pytest_llminfer.observations import Sampling
    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.vllm.backend import VllmBackend

    arguments = {"kv_cache_memory_bytes": 64 << 20, "max_model_len": 512, **cell["engine_args"]}
    backend = VllmBackend(EngineSpec("vllm", quantization=cell["quantization"]), cell["model"], arguments, lambda *_: None)
    info = backend.load()
    sampling = Sampling(max_tokens=16).to_dict()
    answer = {
        "dtype": info["dtype"],
        "layout": backend.layout(),
        "asked": backend.settings()["resolved"].get("quantization"),
        "tokens": [output["token_ids"] for output in backend.generate(prompts=prompts, sampling=sampling)["outputs"]],
    }
    backend._live.llm.llm_engine.engine_core.shutdown()
    del backend
    cleanup_dist_env_and_memory()
    return answer


if __name__ == "__main__":
    load_package()
    importlib.import_module("vllm")
    # vLLM looks through everything that its imports left behind eleven times an engine: two thirds of its time here.
    collect = gc.collect
    gc.collect = lambda _generation=0: collect(0)
    task = json.loads(Path(sys.argv[1]).read_text())
    found = [observe(cell, task["prompts"]) for cell in task["cells"]]
    Path(sys.argv[2]).write_text(json.dumps(found))
