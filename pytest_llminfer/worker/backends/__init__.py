"""One implementation an engine, imported only in a worker and only by name."""

from __future__ import annotations

BACKENDS: dict[str, str] = {
    "simulated": "pytest_llminfer.worker.backends.simulated.backend:SimulatedBackend",
    "transformers": "pytest_llminfer.worker.backends.transformers.backend:TransformersBackend",
}
"""Engine name to ``module:Class``."""
