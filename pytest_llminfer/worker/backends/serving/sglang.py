"""SGLang's own server: ``sglang.launch_server``."""

from __future__ import annotations

import json

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.worker.backends.openai.arguments import closest
from pytest_llminfer.worker.backends.serving.command import Command, Order, ask_interpreter, flags, private_file, refuse_taken
from pytest_llminfer.worker.backends.sglang.arguments import CPU_DEFAULTS

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_KV_DTYPES = {"bf16": "bf16", "fp8": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
_QUANTIZATIONS = {"nf4": {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}, "fp8": {"quantization": "fp8"}}
_STORED = ("none", "gptq", "awq", "w8a8", "w4a16")
_TAKEN = (
    *("model", "model_path", "host", "port", "api_key", "served_model_name", "config", "device"),
    *("tp", "tp_size", "tensor_parallel_size", "pp", "pp_size", "pipeline_parallel_size", "dp", "dp_size", "data_parallel_size"),
    *("dtype", "quantization", "load_format", "kv_cache_dtype"),
)

_LOOK = """
import argparse, json
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
print(json.dumps([name for action in parser._actions if action.nargs == 0 for name in action.option_strings]))
"""
_LOOK_SECONDS = 300


def command(order: Order) -> Command:
    """The cell stands in a configuration file that only this user can read: it holds the key, which a command line would show.

    Raises:
        UnsupportedError: a quantization or KV dtype that SGLang does not serve.
        BadInputError: an argument that the cell chooses, or a switch that does not exist.
    """
    refuse_taken(order.arguments, *_TAKEN)
    spec = order.spec
    if spec.quantization not in (*_STORED, *_QUANTIZATIONS):
        raise UnsupportedError(
            f"SGLang cannot serve quantization={spec.quantization}",
            "use quantization=none, fp8 or nf4, or a checkpoint in gptq, awq, w8a8 or w4a16",
        )
    kv_dtype = spec.kv_dtype if spec.kv_dtype != spec.dtype else "auto"
    if kv_dtype not in ("auto", *_KV_DTYPES):
        raise UnsupportedError(f"SGLang has no KV cache of {kv_dtype}", f"use one of: {', '.join(_KV_DTYPES)}")
    chosen = {
        "model_path": order.model_path,
        "host": "127.0.0.1",
        "port": order.port,
        "served_model_name": order.name,
        "api_key": order.key,
        **({"dtype": DTYPES[spec.dtype]} if spec.dtype != "auto" else {}),
        **({"kv_cache_dtype": _KV_DTYPES[kv_dtype]} if kv_dtype != "auto" else {}),
        **({"load_format": "dummy"} if spec.weights == "dummy" else {}),
        **_QUANTIZATIONS.get(spec.quantization, {}),
        **({"tp_size": spec.tp} if spec.tp > 1 else {}),
        **({"pp_size": spec.pp} if spec.pp > 1 else {}),
        **({"dp_size": spec.dp} if spec.dp > 1 else {}),
        **({} if order.gpu else {"device": "cpu"}),
    }
    # JSON is YAML, which is what the server reads. It takes no deprecated flag from there, so the user's own are flags.
    file = private_file(order.folder, "server.yaml", json.dumps({name.replace("_", "-"): value for name, value in chosen.items()}))
    arguments = dict(order.arguments) if order.gpu else {**CPU_DEFAULTS, **order.arguments}
    given = {name: value for name, value in arguments.items() if value is not False}
    off = _switched_off(order, [name for name, value in arguments.items() if value is False])
    return Command(
        argv=(order.interpreter, "-m", "sglang.launch_server", "--config", str(file), *flags(given), *off),
        device="cuda" if order.gpu else "cpu",
    )


def _switched_off(order: Order, names: list[str]) -> list[str]:
    """The flags that switch something off; most switches of the installed server have none, and are off by default.

    Raises:
        BadInputError: a name that is no switch of it.
    """
    if not names:
        return []
    printed = ask_interpreter(
        order.interpreter, _LOOK, heartbeat=lambda: order.progress("looking at sglang", 0, 1), seconds=_LOOK_SECONDS
    )
    known = json.loads(printed.strip().splitlines()[-1])
    for name in names:
        if f"--{name.replace('_', '-')}" not in known:
            switches = [switch[2:].replace("-", "_") for switch in known if not switch.startswith("--no-")]
            raise BadInputError(f"SGLang's server has no switch {name!r} that could be off.{closest(name, switches)}")
    return [flag for flag in flags(dict.fromkeys(names, False)) if flag in known]
