"""What a model's files make of the conversations that every chat template is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Self

from pytest_llminfer.errors import RefusedConversationError
from pytest_llminfer.models.chat_forms import CONVERSATIONS, differs

if TYPE_CHECKING:
    from pytest_llminfer.models.chat_forms import Conversation
    from pytest_llminfer.models.model import Model


@dataclass(frozen=True, slots=True)
class Conversations:
    """What a model makes of each of :data:`CONVERSATIONS`, in order.

    Attributes:
        token_ids: One list of token ids per conversation; empty where the template refuses the conversation.
        departures: One line for each text that departs from the form of the template; empty if none does.
        refusals: One line for each refused conversation, with the template's reason; empty if none is refused.
    """

    token_ids: tuple[list[int], ...]
    departures: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Model) -> Self:
        """By the model's own template and tokenizer; templates that write the date get a fixed one."""
        token_ids: list[list[int]] = []
        departures, refusals = [], []
        for number, messages in enumerate(CONVERSATIONS):
            try:
                text = model.render_chat(list(messages))
            except RefusedConversationError as refusal:
                token_ids.append([])
                refusals.append(f"conversation {number} ({messages[0]['role']} first) is not judged: {refusal}")
                continue
            token_ids.append(model.encode(text))
            departures.append(differs(model.chat_template, messages, text, model.template_tokens))
        return cls(tuple(token_ids), tuple(filter(None, departures)), tuple(refusals))

    @property
    def taken(self) -> tuple[Conversation, ...]:
        """The conversations that the template takes."""
        return tuple(messages for messages, ids in zip(CONVERSATIONS, self.token_ids, strict=True) if ids)

    @property
    def taken_ids(self) -> tuple[list[int], ...]:
        """Their token ids."""
        return tuple(filter(None, self.token_ids))

    def counts_today(self, model: Model) -> dict[str, int]:
        """How many tokens each single question has as a chat of today, by question: what a server should count."""
        questions = [messages for messages in self.taken if len(messages) == 1]
        return {messages[0]["content"]: len(model.chat(list(messages), today=date.today())) for messages in questions}  # noqa: DTZ011
