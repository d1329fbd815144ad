"""What an engine's model is asked about conversations, for a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.models.conversations import Conversations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.engines.engine import Engine


def conversations_of(engine: Engine) -> Conversations:
    """Token ids of the given conversations, by the model's own template and tokenizer.

    Raises:
        UnsupportedError: the model has no tokenizer, or no chat template.
    """
    if not (engine.model.has_tokenizer and engine.model.chat_template):
        raise UnsupportedError(
            f"{engine.model.name} has no tokenizer or no chat template",
            "put tokenizer.json and chat_template.jinja beside its config.json, or give another model",
        )
    return Conversations.of(engine.model)


def observe(engine: Engine, previous: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG001 - a record stands alone
    """The token ids of each conversation, as one line."""
    return {"token_ids": [" ".join(map(str, ids)) for ids in engine.once(conversations_of).token_ids]}


def recorded_ids(expected: Mapping[str, Any]) -> list[list[int]]:
    """The token ids of each recorded conversation; none of one that the template refused."""
    return [list(map(int, ids.split())) for ids in expected["token_ids"]]
