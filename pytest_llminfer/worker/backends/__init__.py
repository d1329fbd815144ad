"""One implementation an engine, imported only in a worker and only by name."""

from __future__ import annotations

_HERE = "pytest_llminfer.worker.backends"
SERVED = f"{_HERE}.serving.backend:ServedBackend"
"""For every cell whose engine is asked through its own server."""

BACKENDS: dict[str, str] = {
    "llamacpp": f"{_HERE}.llamacpp.backend:LlamacppBackend",
    "openai": f"{_HERE}.openai.backend:OpenaiBackend",
    "sglang": f"{_HERE}.sglang.backend:SglangBackend",
    "simulated": f"{_HERE}.simulated.backend:SimulatedBackend",
    "transformers": f"{_HERE}.transformers.backend:TransformersBackend",
    "vllm": f"{_HERE}.vllm.backend:VllmBackend",
}
"""Engine name to ``module:Class``."""
