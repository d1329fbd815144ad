"""GGUF with llama.cpp's own quantizer; run by quantize.py in the environment of llama-cpp-python."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.llamacpp.files import model_file


def main(task: dict[str, str]) -> None:
    """Convert to F16, quantize where the format says so, and copy the file from the cache."""
    wanted = task["format"]
    spec = EngineSpec("llamacpp", dtype="fp16", quantization="none" if wanted == "f16" else wanted)
    made = model_file(spec, task["model"], lambda *_: None).path
    out = Path(task["out"])
    out.mkdir()
    shutil.copyfile(made, out / f"{Path(task['model']).name}-{wanted.upper()}.gguf")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
