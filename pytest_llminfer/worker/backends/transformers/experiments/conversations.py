"""Conversations in the words of the engine's own tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def chat(_model: Any, path: str, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
    """Token ids of each conversation up to where the model answers, by the tokenizer that transformers finds at ``path``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    if not tokenizer.chat_template:
        raise UnsupportedError(f"the tokenizer at {path} has no chat template")
    return [
        [int(token) for token in tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)]
        for messages in conversations
    ]
