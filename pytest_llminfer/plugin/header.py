"""The one line at the top: what is tested, on what, against which baselines, and where each setting came from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llminfer.hardware import Hardware
    from pytest_llminfer.plugin.options import Options


def header(options: Options, cells: int, hardware: Hardware) -> str:
    """Settings with their source in brackets, except for defaults."""
    cell = options.matrix
    shown = {"engine": cell.engine, "model": cell.model, "quantization": cell.quantization, "dtype": cell.dtype, "gpus": cell.gpus}
    words = []
    for name, value in {**shown, "dataset": options.accuracy.dataset}.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        source = options.session.sources[name]
        if source != "default" or name in ("engine", "model"):
            words.append(f"{name}={text}" + (f" [{source}]" if source != "default" else ""))
    baselines = os.path.relpath(options.baselines.directory, Path.cwd())
    return (
        f"llminfer: {', '.join(words)}; {cells} cell{'s' * (cells != 1)}; baselines: {baselines}; hardware: {hardware.describe()}"
    )
