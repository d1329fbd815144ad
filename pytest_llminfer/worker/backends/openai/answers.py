"""What a server's answer says, whole or in streamed chunks, from the completion or the chat endpoint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
}
_SPOKEN = ("message", "delta")
_OBJECTS = (*_SPOKEN, "logprobs")
_ID = re.compile(r"token_id:(\d+)$")


def oddity(reply: Any) -> str:
    """Where a reply or a chunk of one is of no shape that an answer has, as a phrase; empty where it is sound."""
    if not isinstance(reply, dict):
        return f"a reply is a JSON object, not {_kind(reply)}"
    choices = reply.get("choices")
    if choices is None or choices == []:
        return ""
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        return f"choices is a list of objects, not {_kind(choices)}"
    choice = choices[0]
    spoken = [choice.get(name) for name in _SPOKEN]
    texts = [(choice, "text"), (choice, "finish_reason"), *((each, "content") for each in spoken if isinstance(each, dict))]
    wrong = [
        *(f"{name} is an object, not {_kind(choice[name])}" for name in _OBJECTS if not isinstance(choice.get(name), dict | None)),
        *(f"{name} is text, not {_kind(each[name])}" for each, name in texts if not isinstance(each.get(name), str | None)),
    ]
    ids = choice.get("token_ids")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
        wrong.append("token_ids is a list of whole numbers or nothing")
    if not wrong:
        try:
            _steps(choice.get("logprobs") or {})
        except (AttributeError, KeyError, TypeError, ValueError):
            wrong.append("logprobs are not those of completions or of chats")
    return wrong[0] if wrong else ""


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


class Answer:
    """The first choice of an answer, put together from its chunks in the order in which they came.

    token_ids: None where the server gave none. usage: as the server wrote it last.
    """

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] | None = None
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] = {}
        self._steps: list[dict[str, float]] = []

    def add(self, chunk: Mapping[str, Any]) -> int:
        """Take in a whole reply or a chunk; the number of tokens that it brought, 1 where only their text is known."""
        if isinstance(chunk.get("usage"), dict):
            self.usage = dict(chunk["usage"])
        choices = chunk.get("choices") or [{}]
        choice = choices[0]
        message = choice.get("message") or choice.get("delta") or {}
        text = choice.get("text") or message.get("content") or ""
        self.text += text
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        ids = choice.get("token_ids")
        if ids is not None:
            self.token_ids = [*(self.token_ids or []), *map(int, ids)]
        self._steps += _steps(choice.get("logprobs") or {})
        return len(ids) if ids is not None else int(bool(text))

    @property
    def ended_by(self) -> str:
        """``stop`` or ``length`` in our words; what the server said otherwise, ``nothing`` where it said nothing."""
        return _REASONS.get(self.finish_reason or "", self.finish_reason or "nothing")

    @property
    def completion_tokens(self) -> int | None:
        """How many tokens the answer has, by the server's own count or its token ids."""
        count = self.usage.get("completion_tokens")
        if isinstance(count, int):
            return count
        return len(self.token_ids) if self.token_ids is not None else None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that came from a prefix cache, where the server says so."""
        details = self.usage.get("prompt_tokens_details")
        count = details.get("cached_tokens") if isinstance(details, dict) else None
        return count if isinstance(count, int) else None

    def top(self, count: int) -> dict[str, np.ndarray]:
        """``top_ids`` and ``top_logprobs`` of ``count`` tokens a step; empty where the server does not name tokens by id."""
        if not count or not self._steps or self.token_ids is None or len(self._steps) != len(self.token_ids):
            return {}
        ids, values = [], []
        for step in self._steps:
            matches = [(_ID.match(token), value) for token, value in step.items()]
            # The chosen token comes on top of the most likely ones, so a step may hold one more than was asked for.
            known = sorted(((-value, int(match[1])) for match, value in matches if match))[:count]
            if len(known) < min(count, len(step)) or len(known) < count:
                return {}
            ids.append([token for _, token in known])
            values.append([-value for value, _ in known])
        return {"top_ids": np.array(ids, np.int32), "top_logprobs": np.array(values, np.float32)}


def _steps(logprobs: Mapping[str, Any]) -> list[dict[str, float]]:
    """Of each token, the log-probability in nats of the most likely ones and of itself."""
    if isinstance(content := logprobs.get("content"), list):
        return [
            {
                **{other["token"]: float(other["logprob"]) for other in entry.get("top_logprobs") or []},
                entry["token"]: float(entry["logprob"]),
            }
            for entry in content
        ]
    tops = logprobs.get("top_logprobs") or []
    return [{token: float(value) for token, value in (step or {}).items()} for step in tops]
