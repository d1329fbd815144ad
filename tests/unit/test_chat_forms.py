from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.chat.check import check_conversations
from pytest_llminfer.models.chat import ChatTemplate
from pytest_llminfer.models.chat_forms import CHATML, CONVERSATIONS, LLAMA3, ZEPHYR, differs, form_of
from pytest_llminfer.models.conversations import Conversations
from pytest_llminfer.models.model import Model
from pytest_llminfer.verdict import Outcome

LOOP = "{% for each in messages %}{{ BODY }}{% endfor %}{% if add_generation_prompt %}{{ ANSWER }}{% endif %}"
TEMPLATES = {
    "ChatML": LOOP.replace("BODY", r"'<|im_start|>' ~ each.role ~ '\n' ~ each.content ~ '<|im_end|>\n'").replace(
        "ANSWER", r"'<|im_start|>assistant\n'"
    ),
    "Llama 3": "{{ bos_token }}"
    + LOOP.replace(
        "BODY", r"'<|start_header_id|>' ~ each.role ~ '<|end_header_id|>\n\n' ~ each.content | trim ~ '<|eot_id|>'"
    ).replace("ANSWER", r"'<|start_header_id|>assistant<|end_header_id|>\n\n'"),
    "Zephyr": LOOP.replace("BODY", r"'<|' ~ each.role ~ '|>\n' ~ each.content ~ eos_token ~ '\n'").replace(
        "ANSWER", r"'<|assistant|>\n'"
    ),
}
TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "</s>"}


FORMS = {form.name: form for form in (CHATML, LLAMA3, ZEPHYR)}
DATED = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set said = '' %}{% endif %}"
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% else %}{% set day = '26 Jul 2024' %}{% endif %}"
    r"{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' ~ day ~ '\n\n' }}"
    "{{ said ~ '<|eot_id|>' }}" + TEMPLATES["Llama 3"].removeprefix("{{ bos_token }}")
)
BY_ROLE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\n' + m['content']USER }}{% elif m['role'] == 'system' %}"
    "{{ '<|system|>\n' + m['content']USER }}{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content']ANSWER }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
STOCK = {
    "zephyr": (BY_ROLE.replace("USER", " + eos_token + '\n'").replace("ANSWER", " + eos_token + '\n'"), "</s>", "Zephyr"),
    "stablelm-zephyr": (
        BY_ROLE.replace("USER", " + '<|endoftext|>\n'").replace("ANSWER", " + '<|endoftext|>\n'"),
        "<|endoftext|>",
        "Zephyr",
    ),
    "phi-3": (BY_ROLE.replace("USER", " + '<|end|>\n'").replace("ANSWER", " + '<|end|>\n'"), "<|endoftext|>", ""),
    "glm-4": ("[gMASK]<sop>" + BY_ROLE.replace("USER", "").replace("ANSWER", ""), "<|endoftext|>", ""),
    "tulu": (BY_ROLE.replace("USER", " + '\n'").replace("ANSWER", " + eos_token + '\n'"), "<|endoftext|>", ""),
    "phi-4": (TEMPLATES["ChatML"].replace(r"each.role ~ '\n'", "each.role ~ '<|im_sep|>'"), "<|im_end|>", ""),
    "hermes-3": ("{{ bos_token }}" + TEMPLATES["ChatML"], "<|im_end|>", "ChatML"),
    "llama-3.1": (DATED, "<|eot_id|>", "Llama 3"),
    "qwen3-thinking": (TEMPLATES["ChatML"].replace(r"assistant\n'", r"assistant\n<think>\n'"), "<|im_end|>", "ChatML"),
}
"""Templates in the manner of models that are widely used: source, ``eos_token``, form."""


def render(source: str, messages: Sequence[dict[str, str]], **tokens: Any) -> str:
    return ChatTemplate(source, file=Path("chat_template.jinja")).render(messages, TOKENS | tokens)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
            r"takes more than \d+ s for one conversation",
        ),
        ("{{ '%0999999999d' % 1 }}", "takes more than 1024 MiB"),
        ("{{ 'x' * 10**10 }}", "takes more than 1024 MiB"),
        ("{{ [1] * 10**9 }}", "takes more than 1024 MiB"),
    ],
)
@pytest.mark.fault(
    "inputs", "a chat template loops, or makes a text of gigabytes", "ended at 10 s of processor time or 1 GiB, in one line"
)
def test_a_template_can_neither_hold_up_nor_exhaust_pytest(source: str, said: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(BadInputError, match=rf"^the chat template in chat_template\.jinja {said}; fetch the file again"):
        render(source, messages)
    # The next one finds a process that answers.
    assert render(TEMPLATES["ChatML"], messages) == CHATML.write(messages)


def departure(source: str, messages: Sequence[dict[str, str]], rendered: Any, **tokens: Any) -> str:
    return differs(source, messages, rendered, TOKENS | tokens)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["turn", "system", "turns", "unicode"])
def test_templates_of_the_three_forms_agree_with_them(name: str, messages: Sequence[dict[str, str]]) -> None:
    rendered = render(TEMPLATES[name], messages)
    assert rendered == FORMS[name].write(messages)
    assert form_of(TEMPLATES[name], TOKENS) == FORMS[name]
    assert departure(TEMPLATES[name], messages, rendered) == ""


def test_the_forms_as_their_makers_show_them() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert CHATML.write(messages) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert LLAMA3.write(messages) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert ZEPHYR.write(messages) == "<|user|>\nHi</s>\n<|assistant|>\n"


@pytest.mark.parametrize("name", STOCK)
def test_no_template_in_use_departs(name: str) -> None:
    source, end, expected = STOCK[name]
    form = form_of(source, TOKENS | {"eos_token": end})
    assert (form.name if form else "") == expected
    rendered = [render(source, messages, eos_token=end) for messages in CONVERSATIONS]
    assert "Answer with a number." in rendered[1]
    assert [departure(source, messages, text, eos_token=end) for messages, text in zip(CONVERSATIONS, rendered, strict=True)] == [
        ""
    ] * 4


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("ChatML", lambda text: text.replace("<|im_end|>\n", "<|im_end|>", 1)),
        ("ChatML", lambda text: text.removesuffix("<|im_start|>assistant\n")),
        ("ChatML", lambda text: "junk" + text),
        ("ChatML", lambda text: text + "trailing junk"),
        ("ChatML", lambda text: "junk<|im_start|>system\nOwn.<|im_end|>\n" + text + "trailing junk"),
        ("ChatML", lambda text: "<|im_start|>system\nOwn.<|im_end|>\n" + text + "trailing junk"),
        ("ChatML", lambda text: "<|im_start|>system\nOwn.<|im_start|>user\nWho?<|im_end|>\n" + text),
        ("ChatML", lambda text: "<|begin_of_text|>" * 2 + text),
        ("Llama 3", lambda text: "<|begin_of_text|>" + text),
        ("Llama 3", lambda text: text.removeprefix("<|begin_of_text|>")),
        ("Llama 3", lambda text: text.replace("\n\n", "\n", 1)),
        ("Zephyr", lambda text: text.replace("</s>", "", 1)),
        ("Zephyr", lambda text: text.removesuffix("\n")),
    ],
    ids=[
        "no break",
        "no answer",
        "prefix",
        "suffix",
        "both around a system message",
        "suffix behind a system message",
        "a turn in the system message",
        "two beginnings in ChatML",
        "two beginnings",
        "no beginning",
        "one break",
        "no end",
        "no last break",
    ],
)
def test_a_template_that_departs_from_its_form_is_shown(name: str, damage: Callable[..., Any]) -> None:
    rendered = damage(FORMS[name].write(CONVERSATIONS[2]))
    assert departure(TEMPLATES[name], CONVERSATIONS[2], rendered).startswith(f"{name}: ")


def test_the_place_of_a_departure_is_counted_behind_the_templates_own_words() -> None:
    own = "<|im_start|>system\nYou are helpful.<|im_end|>\n"
    rendered = own + CHATML.write(CONVERSATIONS[0]) + "and more"
    assert (
        departure(TEMPLATES["ChatML"], CONVERSATIONS[0], rendered)
        == f"ChatML: 'and more' at character {len(rendered) - 8} instead of ''"
    )


def test_a_system_message_of_the_templates_own_is_no_departure() -> None:
    own = "<|im_start|>system\nYou are helpful.<|im_end|>\n" + CHATML.write(CONVERSATIONS[0])
    assert departure(TEMPLATES["ChatML"], CONVERSATIONS[0], own) == ""
    assert departure(TEMPLATES["ChatML"], CONVERSATIONS[1], own) != ""


@pytest.mark.parametrize(
    ("written", "departs"),
    [
        ("Cutting Knowledge Date: December 2023\n\nAnswer with a number.", False),
        ("## Custom Instructions\n\nAnswer with a number.\n\n", False),
        ("Answer with a number.\n\n", True),
        ("Answer with a number. Be brief.", True),
        ("Cutting Knowledge Date: December 2023", True),
    ],
)
def test_words_before_the_users_own_system_message_are_no_departure(written: str, departs: bool) -> None:
    rendered = CHATML.write([{"role": "system", "content": written}, CONVERSATIONS[1][1]])
    assert bool(departure(TEMPLATES["ChatML"], CONVERSATIONS[1], rendered)) is departs


def test_an_unknown_form_is_not_judged() -> None:
    assert form_of("[INST] {{ messages[0].content }} [/INST]", TOKENS) is None
    assert departure("[INST]", CONVERSATIONS[0], "whatever") == ""


def test_the_reference_model_speaks_chatml() -> None:
    model = Model("reference")
    assert form_of(model.chat_template, model.template_tokens) == CHATML
    assert Conversations.of(model).departures == Conversations.of(model).refusals == ()
    assert Conversations.of(model).taken == CONVERSATIONS
    assert model.special_tokens[1] == "<|im_start|>"


def model_with(folder: Path, template: str) -> Model:
    """The reference model with another chat template."""
    shutil.copytree(Model("reference").folder, folder, ignore=lambda _, names: [name for name in names if "safetensors" in name])
    (folder / "chat_template.jinja").write_text(template)
    return Model(str(folder))


def test_the_date_of_a_prompt_is_the_same_every_day(tmp_path: Path) -> None:
    model = model_with(tmp_path / "dated", DATED)
    assert "Today Date: 26 Jul 2024\n" in model.render_chat("hi")
    assert "Today Date: 01 Feb 2025\n" in model.render_chat("hi", today=date(2025, 2, 1))
    asked = Conversations.of(model)
    (question, *_) = asked.counts_today(model)
    assert asked.counts_today(model)[question] == len(model.chat(question, today=date.today()))  # noqa: DTZ011


def test_a_refused_conversation_is_named_and_the_others_are_judged(tmp_path: Path) -> None:
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATES["ChatML"]
    )
    asked = Conversations.of(model_with(tmp_path / "refusing", refusing))
    assert [bool(ids) for ids in asked.token_ids] == [True, False, True, True]
    assert asked.taken == (CONVERSATIONS[0], *CONVERSATIONS[2:])
    assert asked.taken_ids == (asked.token_ids[0], *asked.token_ids[2:])
    verdict = check_conversations(
        found=asked.token_ids, expected=asked.token_ids, claim="the same", source="a record", refusals=asked.refusals
    )
    assert verdict.outcome is Outcome.PASS
    assert verdict.key.endswith(" tokens, 1 refused")
    assert verdict.details == (
        "conversation 1 (system first) is not judged: the chat template refuses the conversation: System role not supported",
    )
    spoken = [*asked.token_ids[:1], [5, 6], *asked.token_ids[2:]]
    assert check_conversations(found=asked.token_ids, expected=spoken, claim="the same", source="a record").outcome is Outcome.FAIL


NAMES = {1: "<|begin_of_text|>"}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([[1, 1, 5], [1, 7]], "conversation 0 begins with <|begin_of_text|> twice"),
        ([[1, 5, 6], [1, 8]], "conversation 1: token 8 instead of token 7 at position 1 (2 tokens for 2)"),
        ([[1, 5], [1, 7]], "conversation 0: its end instead of token 6 at position 2"),
        ([[5, 6], [1, 7]], "token 5 instead of token 1 <|begin_of_text|> at position 0"),
        ([[1, 5, 6]], "1 conversations for 2"),
    ],
)
def test_other_tokens_fail_and_are_named(found: list[list[int]], says: str) -> None:
    verdict = check_conversations(found=found, expected=[[1, 5, 6], [1, 7]], claim="the same", source="a record", names=NAMES)
    assert verdict.outcome is Outcome.FAIL
    assert says in str(verdict)


def test_equal_tokens_pass_and_a_departure_does_not() -> None:
    same: dict[str, Any] = {"found": [[1, 5, 6]], "expected": [[1, 5, 6]], "claim": "the same", "source": "a record"}
    assert check_conversations(**same).outcome is Outcome.PASS
    assert check_conversations(**same, departures=["ChatML: no end"]).outcome is Outcome.FAIL
    assert check_conversations(found=[], expected=[], claim="the same", source="a record").outcome is Outcome.FAIL
