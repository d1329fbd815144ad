"""Run by path in any interpreter: import one engine for real, and print what was found as JSON.

Standard library only, from Python 3.10 on.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def examine(*, distributions: Sequence[str], packages: Sequence[str], attribute: str) -> dict[str, Any]:
    """What this interpreter has for an engine: versions, missing packages, the error of the import, and the GPUs seen.

    distributions: that bring it, the likelier first. packages: that it needs, its own first. attribute: ``module:name``, whose
    import is the real thing. Keys: python, distribution, version, missing, torch, cuda (the version that torch was built for,
    empty for a CPU build), driver_cuda (the highest that the driver runs), gpus, offload (llama.cpp: was it built for GPUs),
    error, seconds, warnings.
    """
    found: dict[str, Any] = {"python": platform.python_version(), "distribution": "", "version": "", "torch": ""}
    for name in distributions:
        if version := _version(name):
            found |= {"distribution": name, "version": version}
            break
    # A module without its distribution is a stub, or something else of that name.
    absent = bool(distributions) and not found["version"]
    found["missing"] = list(packages) if absent else [name for name in packages if importlib.util.find_spec(name) is None]
    found |= {"error": "", "seconds": 0.0, "warnings": []}
    if packages[0] in found["missing"]:
        return found
    if "torch" in packages:
        found["torch"] = _version("torch")
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            module, _, name = attribute.partition(":")
            getattr(importlib.import_module(module), name)
            found |= _devices()
        except BaseException as error:  # noqa: BLE001 - whatever an import raises, SystemExit included, is the finding
            found["error"] = f"{type(error).__name__}: {error}".strip()
    found["seconds"] = round(time.perf_counter() - started, 2)
    found["warnings"] = [str(each.message) for each in caught if "driver" in str(each.message).lower()]
    return found


def _devices() -> dict[str, Any]:
    found: dict[str, Any] = {}
    llama = sys.modules.get("llama_cpp")
    if llama is not None:
        found["offload"] = bool(llama.llama_supports_gpu_offload())
    torch = sys.modules.get("torch")
    if torch is not None:
        found["cuda"] = torch.version.cuda or getattr(torch.version, "hip", None) or ""
        found["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if torch.version.cuda and hasattr(torch._C, "_cuda_getDriverVersion"):  # noqa: SLF001 - torch offers no other way
            number = torch._C._cuda_getDriverVersion()  # noqa: SLF001 - as above
            found["driver_cuda"] = f"{number // 1000}.{number % 1000 // 10}" if number else ""
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def main() -> None:
    """Examine the engine that the only argument describes, as JSON. What engines print cannot mix with the answer."""
    answer = os.dup(1)
    os.dup2(2, 1)
    # The folder of this file would stand before the packages of the interpreter, with the names of our subcommands.
    del sys.path[0]
    text = json.dumps(examine(**json.loads(sys.argv[1])))
    with os.fdopen(answer, "w") as stream:
        stream.write(text)
    # Threads and atexit handlers of an engine have nothing more to say, and may hang.
    os._exit(0)


if __name__ == "__main__":
    main()
