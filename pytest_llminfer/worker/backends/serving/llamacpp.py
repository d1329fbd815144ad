"""The server of llama-cpp-python, on the GGUF file that the engine itself would load."""

from __future__ import annotations

import json
import os
from typing import Any

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.worker.backends.llamacpp.arguments import DEFAULT_KV_DTYPE, KV_TYPES, check_offload
from pytest_llminfer.worker.backends.openai.arguments import closest
from pytest_llminfer.worker.backends.requests import check_parallelism
from pytest_llminfer.worker.backends.serving.command import Command, Order, ask_interpreter, private_file, refuse_taken

_CONTEXT = 2048
_TAKEN = ("model", "model_alias", "host", "port", "api_key", "seed", "type_k", "type_v")
_CONVERT = """
import json, sys
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.llamacpp.files import model_file
from llama_cpp import llama_supports_gpu_offload
from llama_cpp.server.settings import ModelSettings
file = model_file(EngineSpec(**json.loads(sys.argv[1])), sys.argv[2], lambda *_: None)
print(json.dumps([str(file.path), file.dtype, sorted(ModelSettings.model_fields), llama_supports_gpu_offload()]))
"""


def command(order: Order) -> Command:
    """Settings and key stand in a file that only this user can read; converting runs in the engine's own interpreter.

    Raises:
        UnsupportedError: a KV dtype, parallelism or offloading that this server does not have.
        BadInputError: an unknown setting, or one that the cell chooses.
    """
    refuse_taken(order.arguments, *_TAKEN)
    check_parallelism(order.spec)
    if order.spec.kv_dtype not in ("auto", *KV_TYPES):
        raise UnsupportedError(f"llama.cpp has no KV cache of dtype {order.spec.kv_dtype}", f"use one of: {', '.join(KV_TYPES)}")
    cell = json.dumps(order.spec.to_dict())
    printed = ask_interpreter(
        order.interpreter, _CONVERT, cell, order.model_path, heartbeat=lambda: order.progress("converting", 0, 1)
    )
    path, dtype, known, offload = json.loads(printed.strip().splitlines()[-1])
    for name in order.arguments:
        if name not in known:
            raise BadInputError(f"llama-cpp-python's server has no setting {name!r}.{closest(name, known)}")
    check_offload(order.arguments.get("n_gpu_layers"), offload=offload)
    kv_dtype = order.spec.kv_dtype if order.spec.kv_dtype != "auto" else DEFAULT_KV_DTYPE
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    model: dict[str, Any] = {
        "model": path,
        "model_alias": order.name,
        "n_ctx": _CONTEXT,
        "n_threads": threads,
        "n_threads_batch": threads,
        "type_k": KV_TYPES[kv_dtype],
        "type_v": KV_TYPES[kv_dtype],
        "seed": 0,
        "n_gpu_layers": -1 if order.gpu and offload else 0,
        "verbose": False,
        **order.arguments,
    }
    # By default a new request interrupts the one that is being streamed.
    settings = {"host": "127.0.0.1", "port": order.port, "api_key": order.key, "interrupt_requests": False, "models": [model]}
    file = private_file(order.folder, "server.json", json.dumps(settings))
    return Command(
        argv=(order.interpreter, "-m", "llama_cpp.server", "--config_file", str(file)),
        # These two of the user's environment would win over the file.
        variables={"HOST": "127.0.0.1", "PORT": str(order.port)},
        api="completions",
        dtype=dtype,
        kv_dtype=kv_dtype,
        device="cuda" if order.gpu and model["n_gpu_layers"] else "cpu",
    )
