"""Chat templates: the same conversation is the same tokens, for every release of the tokenizer and by every way to the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.checks.conversations import check_conversations
from pytest_llminfer.experiments import experiment
from pytest_llminfer.models.chat_forms import CONVERSATIONS, differs
from pytest_llminfer.serving_client import Exchange

if TYPE_CHECKING:
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.judging import Judge
    from pytest_llminfer.recording import Baseline


@pytest.fixture(scope="session")
def conversations(engine: Engine) -> list[list[int]]:
    """Token ids of the given conversations, by the model's own template and tokenizer."""
    if not (engine.model.has_tokenizer and engine.model.chat_template):
        pytest.skip(f"{engine.model.name} has no tokenizer or no chat template")
    return [engine.model.chat(list(messages)) for messages in CONVERSATIONS]


def test_conversations_have_the_recorded_tokens(
    engine: Engine, conversations: list[list[int]], baseline: Baseline, judge: Judge
) -> None:
    """And the text that the template's form (ChatML, Llama 3, Zephyr) prescribes."""
    expected = baseline.expected(
        "chat",
        observed=lambda _: {"token_ids": [" ".join(map(str, ids)) for ids in conversations]},
        conditions={},
        n=len(conversations),
        by="transformers",
        full_width=True,
    )
    model = engine.model
    departures = [differs(model.chat_template, messages, model.render_chat(list(messages))) for messages in CONVERSATIONS]
    judge(
        check_conversations(
            found=conversations,
            expected=[list(map(int, ids.split())) for ids in expected["token_ids"]],
            claim="given conversations have the token ids that were recorded",
            source="the record",
            names=model.special_tokens,
            departures=[line for line in departures if line],
        )
    )


@pytest.mark.llminfer_only(over_http=True)
def test_the_server_counts_the_same_tokens(engine: Engine, conversations: list[list[int]], judge: Judge) -> None:
    """A server applies the template itself, and says how many tokens came of it: a doubled beginning shows in the count."""
    questions = [messages[0]["content"] for messages in CONVERSATIONS if len(messages) == 1]
    counts: list[Any] = [reply.usage.get("prompt_tokens") for reply in Exchange(engine).chat(questions, max_tokens=1)]
    if None in counts:
        pytest.skip("this server does not say how many tokens a prompt has")
    expected = [[len(ids)] for ids, messages in zip(conversations, CONVERSATIONS, strict=True) if len(messages) == 1]
    judge(
        check_conversations(
            found=[[count] for count in counts],
            expected=expected,
            claim="the server turns conversations into as many tokens as the model's files do",
            source="chat_template and tokenizer.json",
        )
    )


@pytest.mark.llminfer_only(engine=("transformers", "vllm", "sglang"), over_http=False)
def test_the_engine_reads_the_template_as_it_is(engine: Engine, conversations: list[list[int]], judge: Judge) -> None:
    """The engine's own tokenizer gives the ids that the harness sends."""
    found = engine.run(
        experiment("conversations.chat"), path=str(engine.model.folder), conversations=[list(each) for each in CONVERSATIONS]
    )
    judge(
        check_conversations(
            found=found,
            expected=conversations,
            claim="the engine's tokenizer gives the same token ids as the model's files read by hand",
            source="chat_template and tokenizer.json",
            names=engine.model.special_tokens,
        )
    )
