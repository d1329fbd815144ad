"""Chat templates: the same conversation is the same tokens, for every release of the tokenizer and by every way to the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.engines.profiles import loaded
from pytest_llminfer.families.chat.check import check_conversations
from pytest_llminfer.families.chat.observe import conversations_of, observe, recorded_ids
from pytest_llminfer.families.probes import bundled_probe
from pytest_llminfer.families.serving.observe import Exchange, answered
from pytest_llminfer.models.chat_forms import TODAY

if TYPE_CHECKING:
    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.models.conversations import Conversations
    from pytest_llminfer.plugin.judging import Judge

pytestmark = pytest.mark.llminfer_only(has_chat_template=True)


@pytest.fixture(scope="session")
def conversations(engine: Engine) -> Conversations:
    """Token ids of the given conversations, by the model's own template and tokenizer."""
    return engine.once(conversations_of)


def test_conversations_have_the_recorded_tokens(
    engine: Engine, conversations: Conversations, baseline: Baseline, judge: Judge
) -> None:
    """And the text that the template's form (ChatML, Llama 3, Zephyr) prescribes; a conversation that it refuses is named."""
    expected: list[list[int]] = baseline.expected(
        "chat",
        observe=observe,
        conditions={},
        n=len(conversations.taken),
        by="transformers",
        unquantized=True,
        arguments="none",
        read=recorded_ids,
    )
    judge(
        check_conversations(
            found=conversations.token_ids,
            expected=expected,
            claim="given conversations have the token ids that were recorded",
            source="the record",
            names=engine.model.special_tokens,
            departures=conversations.departures,
            refusals=conversations.refusals,
        )
    )


@pytest.mark.llminfer_only(over_http=True)
def test_the_server_counts_the_same_tokens(engine: Engine, conversations: Conversations, judge: Judge) -> None:
    """A server applies the template itself, and says how many tokens came of it: a doubled beginning shows in the count."""
    expected = conversations.counts_today(engine.model)
    replies = answered(Exchange(engine).chat(list(expected), max_tokens=1))
    counts: list[Any] = [reply.usage.get("prompt_tokens") for reply in replies]
    if None in counts:
        pytest.skip("this server does not say how many tokens a prompt has; one that sends usage does")
    judge(
        check_conversations(
            found=[[count] for count in counts],
            expected=[[count] for count in expected.values()],
            claim="the server turns conversations into as many tokens as the model's files do",
            source="chat_template and tokenizer.json",
        )
    )


@pytest.mark.llminfer_only(engine=[each.name for each in loaded() if each.has_transformers], over_http=False)
def test_the_engine_reads_the_template_as_it_is(engine: Engine, conversations: Conversations, judge: Judge) -> None:
    """The engine's own tokenizer gives the ids that the harness sends."""
    found = engine.run(
        bundled_probe("chat.conversations.chat"),
        path=str(engine.model.folder),
        conversations=[list(each) for each in conversations.taken],
        today=TODAY.isoformat(),
    )
    judge(
        check_conversations(
            found=found,
            expected=conversations.taken_ids,
            claim="the engine's tokenizer gives the same token ids as the model's files read by hand",
            source="chat_template and tokenizer.json",
            names=engine.model.special_tokens,
        )
    )
