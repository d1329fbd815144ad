from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llminfer.checks.conversations import check_conversations
from pytest_llminfer.models.chat import ChatTemplate
from pytest_llminfer.models.chat_forms import CONVERSATIONS, FORMS, chatml, differs, form_of, llama3, zephyr
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


def render(source, messages):
    return ChatTemplate(source, file=Path("chat_template.jinja")).render(messages, TOKENS)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["turn", "system", "turns", "unicode"])
def test_templates_of_the_three_forms_agree_with_them(name, messages):
    rendered = render(TEMPLATES[name], messages)
    assert rendered == FORMS[name][1](messages)
    assert form_of(TEMPLATES[name]) == name
    assert differs(TEMPLATES[name], messages, rendered) == ""


def test_the_forms_as_their_makers_show_them():
    messages = [{"role": "user", "content": "Hi"}]
    assert chatml(messages) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert llama3(messages) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert zephyr(messages) == "<|user|>\nHi</s>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("ChatML", lambda text: text.replace("<|im_end|>\n", "<|im_end|>", 1)),
        ("ChatML", lambda text: text.removesuffix("<|im_start|>assistant\n")),
        ("Llama 3", lambda text: "<|begin_of_text|>" + text),
        ("Llama 3", lambda text: text.replace("\n\n", "\n", 1)),
        ("Zephyr", lambda text: text.replace("</s>", "", 1)),
    ],
    ids=["no break", "no answer", "two beginnings", "one break", "no end"],
)
def test_a_template_that_departs_from_its_form_is_shown(name, damage):
    rendered = damage(FORMS[name][1](CONVERSATIONS[2]))
    assert differs(TEMPLATES[name], CONVERSATIONS[2], rendered).startswith(f"{name}: ")


def test_a_system_message_of_the_templates_own_is_no_departure():
    own = "<|im_start|>system\nYou are helpful.<|im_end|>\n" + chatml(CONVERSATIONS[0])
    assert differs(TEMPLATES["ChatML"], CONVERSATIONS[0], own) == ""
    assert differs(TEMPLATES["ChatML"], CONVERSATIONS[1], own) != ""


def test_an_unknown_form_is_not_judged():
    assert form_of("[INST] {{ messages[0].content }} [/INST]") == ""
    assert differs("[INST]", CONVERSATIONS[0], "whatever") == ""


def test_the_reference_model_speaks_chatml():
    model = Model("reference")
    assert form_of(model.chat_template) == "ChatML"
    assert [differs(model.chat_template, messages, model.render_chat(list(messages))) for messages in CONVERSATIONS] == [""] * 4
    assert model.special_tokens[1] == "<|im_start|>"


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
def test_other_tokens_fail_and_are_named(found, says):
    verdict = check_conversations(found=found, expected=[[1, 5, 6], [1, 7]], claim="the same", source="a record", names=NAMES)
    assert verdict.outcome is Outcome.FAIL
    assert says in str(verdict)


def test_equal_tokens_pass_and_a_departure_does_not():
    same = {"found": [[1, 5, 6]], "expected": [[1, 5, 6]], "claim": "the same", "source": "a record"}
    assert check_conversations(**same).outcome is Outcome.PASS
    assert check_conversations(**same, departures=["ChatML: no end"]).outcome is Outcome.FAIL
    assert check_conversations(found=[], expected=[], claim="the same", source="a record").outcome is Outcome.FAIL
