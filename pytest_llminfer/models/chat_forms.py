"""Chat forms that many models share, written out: what a template of that form must make of a conversation. Standard library only.

ChatML (Qwen's documentation), Llama 3 (Meta's prompt format page), Zephyr (the card of zephyr-7b-beta).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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


def chatml(messages: Conversation, _start: str = "") -> str:
    """``<|im_start|>ROLE`` and a line break before every message, ``<|im_end|>`` and one after it; no token before the first."""
    turns = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages)
    return f"{turns}<|im_start|>assistant\n"


def llama3(messages: Conversation, start: str = "<|begin_of_text|>") -> str:
    """The role between header tokens and two line breaks before every message, ``<|eot_id|>`` after it; one token of beginning."""
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    turns = "".join(f"{header.format(each['role'])}{each['content'].strip()}<|eot_id|>" for each in messages)
    return f"{start}{turns}{header.format('assistant')}"


def zephyr(messages: Conversation, end: str = "</s>") -> str:
    """``<|ROLE|>`` on a line of its own before every message, the end token and a line break after it."""
    turns = "".join(f"<|{each['role']}|>\n{each['content']}{end}\n" for each in messages)
    return f"{turns}<|assistant|>\n"


FORMS: Mapping[str, tuple[str, Callable[[Conversation], str]]] = {
    "ChatML": ("<|im_start|>", chatml),
    "Llama 3": ("<|start_header_id|>", llama3),
    "Zephyr": ("<|assistant|>", zephyr),
}
"""By name: what a template of the form contains, and what it makes of a conversation."""


def form_of(template: str) -> str:
    """The form that a chat template's source has; empty where it is none of these."""
    return next((name for name, (sign, _) in FORMS.items() if sign in template), "")


def differs(template: str, messages: Conversation, rendered: str) -> str:
    """How ``rendered`` departs from the template's form, in a line; empty where it does not, or the form is none of these.

    A system message that a template adds of itself (Qwen2.5 and Llama 3.1 do) is no departure.
    """
    name = form_of(template)
    if not name:
        return ""
    expected = FORMS[name][1](messages)
    start = FORMS[name][0]
    own = rendered.find(expected.removeprefix("<|begin_of_text|>"))
    if rendered == expected or (own >= 0 and messages[0]["role"] != "system" and rendered.count(start) > expected.count(start)):
        return ""
    place = next((at for at, (ours, theirs) in enumerate(zip(rendered, expected, strict=False)) if ours != theirs), len(expected))
    return f"{name}: {rendered[place : place + 30]!r} at character {place} instead of {expected[place : place + 30]!r}"
