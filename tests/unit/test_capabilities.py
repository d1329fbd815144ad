"""What a profile says of its engine is what its backend declares; tests with live ones are beside theirs."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter

import pytest

from pytest_llminfer.engines.capabilities import OF_SERVERS, possible_capabilities
from pytest_llminfer.engines.profiles import BUILT_IN, profile
from pytest_llminfer.engines.profiles.base import Profile
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.openai.discovery import Offer, capabilities

# What a backend adds to its own once it knows how the engine was started.
ADDED = {
    "vllm": {"cache_counters", "reset_prefix_cache", "score:decode", "trace"},
    **{name: {"trace"} for name in ("transformers", "sglang", "simulated")},
}
PROFILES = [each for each in map(profile, BUILT_IN) if each.capabilities is not None]


@pytest.mark.parametrize("profile", PROFILES, ids=attrgetter("name"))
def test_each_engine_may_do_what_its_backend_declares(profile: Profile) -> None:
    module, _, name = profile.backend.partition(":")
    backend = getattr(import_module(module), name)
    assert backend.capabilities | ADDED.get(profile.name, set()) == profile.capabilities


def test_every_engine_that_is_asked_in_a_worker_of_its_own_says_what_it_may_do() -> None:
    assert {each.name for each in PROFILES} == set(BUILT_IN) - {"openai"}


def test_a_server_may_do_what_the_richest_offer_gives() -> None:
    offers = [
        Offer(api, prompts, gives_ids=True, gives_logprobs=True, extra={}, scores_prompts=True)
        for api, prompts in (("completions", "token_ids"), ("chat", "messages"))
    ]
    assert frozenset().union(*map(capabilities, offers)) == OF_SERVERS


@pytest.mark.parametrize(
    ("spec", "yes", "no"),
    [
        (EngineSpec("transformers"), "compare_cache_paths", "kv_pool"),
        (EngineSpec("transformers", tp=2), "kv_cache", "compare_cache_paths"),
        (EngineSpec("vllm", serve=True), "serving:stop", "layout"),
        (EngineSpec("openai", environment="http://host/v1"), "score_top", "serving:stop"),
    ],
)
def test_how_a_cell_is_asked_decides(spec: EngineSpec, yes: str, no: str) -> None:
    possible = possible_capabilities(spec)
    assert possible is not None
    assert yes in possible
    assert no not in possible
