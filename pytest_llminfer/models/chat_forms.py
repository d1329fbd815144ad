"""Chat forms that many models share, written out: what a template of that form must make of a conversation. Standard library only.

ChatML (Qwen's documentation), Llama 3 (Meta's prompt format page), Zephyr (the card of zephyr-7b-beta).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Conversation = Sequence[dict[str, str]]

CONVERSATIONS: tuple[Conversation, ...] = (
    ({"role": "user", "content": "How many grams are 3 times 60 grams?"},),
    (
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": "What is 12 + 30?"},
    ),
    (
        {"role": "user", "content": "What is 7 times 8?"},
        {"role": "assistant", "content": "7 times 8 is 56.\n#### 56"},
        {"role": "user", "content": "And half of it?"},
    ),
    ({"role": "user", "content": "Für 5 € kauft Zoë 2 kg Äpfel 🍎.\nHow much is 1 kg?"},),
)
"""What every model's template is asked for: one turn, a system message, several turns, text beyond ASCII."""

TODAY = date(2024, 7, 26)
"""The date that a template gets which writes one, whatever the day, so that prompts and records stay the same. It is the day to
which Llama 3.2 falls back without a date."""

THOUGHTS = ("<think>\n\n</think>\n\n", "<think>\n", "<think>")
"""What templates of reasoning models write after the last header: no thought, or the beginning of one (Qwen3's two, OLMo's)."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way of writing a conversation as text: ``head`` and ``tail`` around each message, ``start`` before the first.

    Attributes:
        name: What it is called in messages ("ChatML").
        sign: Text by which a template's source is recognised as of this form.
        head: What precedes a message, with ``{}`` for its role.
        tail: What follows a message.
        start: What precedes the first message; empty where the form has nothing there.
        trims: Whether white space around a message is dropped.
    """

    name: str
    sign: str
    head: str
    tail: str
    start: str = ""
    trims: bool = False

    def write(self, messages: Conversation, *, start: str = "", own: str | None = None, thought: str = "") -> str:
        """The text of a conversation up to where the model answers.

        start: the token before it, where the form has none. own: the whole system text, where the template adds to it. thought:
        what stands after the last header.
        """
        blocks = [(each["role"], each["content"].strip() if self.trims else each["content"]) for each in messages]
        if own is not None:
            blocks = [("system", own), *(block for block in blocks if block[0] != "system")]
        turns = "".join(f"{self.head.format(role)}{content}{self.tail}" for role, content in blocks)
        return f"{self.start or start}{turns}{self.head.format('assistant')}{thought}"


CHATML = Form("ChatML", sign="<|im_start|>", head="<|im_start|>{}\n", tail="<|im_end|>\n")
LLAMA3 = Form(
    "Llama 3",
    sign="<|start_header_id|>",
    head="<|start_header_id|>{}<|end_header_id|>\n\n",
    tail="<|eot_id|>",
    start="<|begin_of_text|>",
    trims=True,
)
ZEPHYR = Form("Zephyr", sign="<|assistant|>", head="<|{}|>\n", tail="</s>\n")
"""Its tail is the model's ``eos_token`` and a line break; ``</s>`` is Zephyr's own."""


def form_of(template: str, tokens: Mapping[str, str]) -> Form | None:
    """The form that a chat template's source has, None where it is none of these; tokens: the special ones by name (``eos_token``).

    Phi-4 separates ChatML's roles by a token of its own. GLM-4, Phi-3 and Tulu share Zephyr's headers and do not end a user's
    message with the token of the end. All of these are other forms.
    """
    if CHATML.sign in template:
        return None if "<|im_sep|>" in template else CHATML
    if LLAMA3.sign in template:
        return LLAMA3
    end = tokens.get("eos_token", "")
    ends = "|".join(re.escape(each) for each in ("eos_token", end) if each)
    after_a_user = rf"<\|(?:user\|>|['\"]\s*[~+])(?:(?!<\||\{{%|{ends}).)*(?:{ends})"
    if ZEPHYR.sign in template and end and re.search(after_a_user, template, re.DOTALL):
        return replace(ZEPHYR, tail=f"{end}\n")
    return None


def differs(template: str, messages: Conversation, rendered: str, tokens: Mapping[str, str]) -> str:
    """How ``rendered`` departs from the template's form, in a line; empty where it does not, or the form is none of these.

    No departures: a system message of the template's own (Qwen2.5), its own words before the user's (the dates of Llama 3.1), a
    ``bos_token`` before the first message, and the thought that a reasoning model is made to begin.
    """
    form = form_of(template, tokens)
    if form is None:
        return ""
    start = tokens.get("bos_token", "")
    start = form.start or (start if rendered.startswith(start) else "")
    expected = form.write(
        messages,
        start=start,
        own=_own_system(form, messages, rendered.removeprefix(start)),
        thought=next((each for each in THOUGHTS if rendered.endswith(form.head.format("assistant") + each)), ""),
    )
    if rendered == expected:
        return ""
    shorter = min(len(rendered), len(expected))
    place = next((at for at in range(shorter) if rendered[at] != expected[at]), shorter)
    return f"{form.name}: {rendered[place : place + 30]!r} at character {place} instead of {expected[place : place + 30]!r}"


def _own_system(form: Form, messages: Conversation, text: str) -> str | None:
    """The system text that ``text`` begins with, where the template may write it: of its own, or ahead of the conversation's."""
    head = form.head.format("system")
    block = text[len(head) :].partition(form.tail)[0] if text.startswith(head) else None
    if block is None or form.sign in block:
        return None
    if messages[0]["role"] != "system":
        return block
    given = messages[0]["content"]
    return block if block.rstrip().endswith(given) and block.rstrip() != given else None
