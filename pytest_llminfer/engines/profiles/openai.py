"""Any server with an OpenAI-compatible interface that someone else runs."""

from __future__ import annotations

from pytest_llminfer.engines.profiles.base import Installation, Profile

PROFILE = Profile(
    name="openai",
    backend="pytest_llminfer.worker.backends.openai.backend:OpenaiBackend",
    takes_gpus=False,
    remote=True,
    # The name of the model is a condition of its own, as the server resolved it.
    operational_args=frozenset({"concurrency", "max_retries", "model", "timeout"}),
    installation=Installation(distributions=("openai",), modules=("openai",), attribute="openai:OpenAI", packages=("openai",)),
)
