"""Any server with an OpenAI-compatible interface that someone else runs."""

from __future__ import annotations

from pytest_llminfer.engines.profiles.base import Installation, Profile

PROFILE = Profile(
    name="openai",
    backend="pytest_llminfer.worker.backends.openai.backend:OpenaiBackend",
    takes_gpus=False,
    remote=True,
    installation=Installation(distributions=("openai",), modules=("openai",), attribute="openai:OpenAI", packages=("openai",)),
)
