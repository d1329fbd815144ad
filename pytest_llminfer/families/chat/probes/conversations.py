"""Conversations in the words of the engine's own tokenizer."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock, patch

from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def chat(_model: Any, path: str, conversations: Sequence[Sequence[Mapping[str, str]]], today: str) -> list[list[int]]:
    """Token ids of each conversation up to where the model answers, by the tokenizer that transformers finds at ``path``.

    today: the date for templates that write it ("2024-07-26"). transformers asks its module's ``datetime`` for the date, and takes
    no function of the caller's.

    Raises:
        UnsupportedError: the tokenizer has no chat template.
    """
    from transformers import AutoTokenizer
    from transformers.utils import chat_template_utils

    tokenizer = AutoTokenizer.from_pretrained(path)
    if not tokenizer.chat_template:
        raise UnsupportedError(
            f"the tokenizer at {path} has no chat template", "put chat_template.jinja there, or give another model"
        )
    with patch.object(chat_template_utils, "datetime", Mock(now=lambda: datetime.fromisoformat(today))):
        return [
            [int(token) for token in tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)]
            for messages in conversations
        ]
