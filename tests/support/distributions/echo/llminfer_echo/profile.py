"""What the harness knows of the engine ``echo``. It says nothing of rotary tables, dummy weights, or how a model is split."""

from __future__ import annotations

from pytest_llminfer.engines.profiles.base import Profile
from pytest_llminfer.predict.rules import Storage

PROFILE = Profile(
    name="echo",
    backend="llminfer_echo.backend:EchoBackend",
    takes_gpus=False,
    capabilities=frozenset({"generate", "layout", "memory", "ranks", "settings"}),
    storage=Storage(),
    operational_args=frozenset({"lose"}),
)
