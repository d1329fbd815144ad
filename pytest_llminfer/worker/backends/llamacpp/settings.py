"""The parameters in force, and llama.cpp's own defaults, as plain data."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from pytest_llminfer.worker.backends.packages import versions

if TYPE_CHECKING:
    from collections.abc import Mapping

_NUMBERS = tuple("?bBhHiIlLqQfd")
"""What ctypes calls its numbers; a pointer has another letter, or a type of its own."""
_LIMITS = ("n_ctx", "n_ctx_seq", "n_batch", "n_ubatch", "n_seq_max")
_OF_THE_HOST = ("n_threads", "n_threads_batch")
"""Follow from the cores at hand, and so are no settings of the engine; a recorded speed has them among its conditions."""


def report(library: Any, llama: Any, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """``{"resolved", "defaults", "versions"}``; defaults of the library's context and model, and of the class ``Llama``."""
    context = llama._ctx.ctx  # noqa: SLF001 - there is no public way to a context of Llama
    limits = {name: int(getattr(library, f"llama_{name}")(context)) for name in _LIMITS if hasattr(library, f"llama_{name}")}
    parameters = inspect.signature(type(llama).__init__).parameters
    given = {name: value for name, value in _plain(llama.context_params).items() if name not in _OF_THE_HOST}
    return {
        "resolved": {"context": {**given, **limits}, "model": _plain(llama.model_params), **resolved},
        "defaults": {
            "context": _plain(library.llama_context_default_params()),
            "model": _plain(library.llama_model_default_params()),
            "Llama": {
                name: entry.default for name, entry in parameters.items() if isinstance(entry.default, (bool, int, float, str))
            },
        },
        "versions": versions("llama-cpp-python", "gguf", "numpy"),
    }


def _plain(structure: Any) -> dict[str, Any]:
    """The numbers of a C structure; pointers and callbacks are left out."""
    numbers = [name for name, kind, *_ in structure._fields_ if getattr(kind, "_type_", None) in _NUMBERS]
    return {name: _rounded(getattr(structure, name)) for name in numbers}


def _rounded(value: float) -> float:
    """A C float as the shortest number that it is, 0.1 and not 0.10000000149."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
