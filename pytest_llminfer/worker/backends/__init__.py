"""One implementation an engine, imported only in a worker and only by the name that its profile gives (``engines/profiles``)."""

from __future__ import annotations

SERVED = "pytest_llminfer.worker.backends.serving.backend:ServedBackend"
"""For every cell whose engine is asked through its own server."""
