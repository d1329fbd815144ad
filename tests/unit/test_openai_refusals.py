"""What the openai backend refuses, or is refused by a server, and the key that it never shows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.errors import BadInputError, EngineError, EngineStartError, UnsupportedError
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.openai.arguments import Arguments
from pytest_llminfer.worker.backends.openai.backend import OpenaiBackend
from tests.support.engines import openai_backends
from tests.support.engines.openai_backends import generate
from tests.support.openai_server import Fake

pytest.importorskip("openai")

fake, load = openai_backends.fake, openai_backends.load
KEY = "sk-llminfer-secret-0123456789"


def test_several_models_must_be_told_apart(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    fake.models.append({"id": "other", "owned_by": "vllm"})
    with pytest.raises(BadInputError, match=r"2 models; name one.*other, served"):
        load()
    assert load(cell={"model": "other"}).settings()["resolved"]["model"] == "other"
    assert load(model="other").settings()["resolved"]["model"] == "other"
    with pytest.raises(BadInputError, match=r"no model 'severed'; it has: other, served\. Did you mean 'served'\?"):
        load(model="severed")


def test_wrong_arguments_and_addresses_are_refused(fake: Fake) -> None:
    def refused(match: str, address: str = fake.address, **engine_args: Any) -> None:
        with pytest.raises(BadInputError, match=match):
            OpenaiBackend(EngineSpec("openai", environment=address), "nowhere", engine_args, lambda *_: None).load()

    refused("unknown engine argument 'concurency'.*Did you mean 'concurrency'", concurency=3)
    refused("concurrency must be a whole number of at least 1", concurrency=0)
    refused("timeout must be a number", timeout="soon")
    refused("unknown api 'chats'.*Did you mean 'chat'", api="chats")
    refused("extra_body must be an object", extra_body=[1])
    refused("give the key as OPENAI_API_KEY", extra_headers={"Authorization": "Bearer x"})
    refused("is no address of a server", address="127.0.0.1:8000/v1")
    refused("holds credentials", address="http://me:secret@127.0.0.1:8000/v1")
    refused("api.openai.com needs an API key: set OPENAI_API_KEY", address="https://api.openai.com/v1")
    refused("openrouter.ai needs an API key: set OPENROUTER_API_KEY", address="https://openrouter.ai/api/v1")


@pytest.mark.parametrize("key", ["", KEY])
@pytest.mark.parametrize("engine_args", [{}, {"model": "served"}])
def test_an_address_without_its_v1_is_told_so(fake: Fake, key: str, engine_args: dict[str, Any]) -> None:
    fake.key = key
    root = fake.address.removesuffix("/v1")
    with pytest.raises(BadInputError, match=rf"answers under /v1 alone: --engine=openai@{fake.address}$"):
        OpenaiBackend(EngineSpec("openai", environment=f"{root}/"), "nowhere", engine_args, lambda *_: None).load()
    fake.models.clear()
    if not key and not engine_args:
        with pytest.raises(BadInputError, match=r"lists no models .*404.*: name one"):
            OpenaiBackend(EngineSpec("openai", environment=root), "nowhere", engine_args, lambda *_: None).load()


def test_a_server_that_wants_a_key_says_so_itself(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    fake.key = KEY
    with pytest.raises(EngineStartError, match=r"needs an API key \(AuthenticationError.*401.*\): set OPENAI_API_KEY"):
        load()


@pytest.mark.parametrize("name", ["Authorization", "X-Auth", "Set-Cookie", "api-key", "X-Password", "My-Secret", "CF-Access-Token"])
def test_a_header_that_holds_a_secret_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(BadInputError, match=f"extra_headers holds '{name}'.*OPENAI_API_KEY") as caught:
        Arguments.read({"extra_headers": {name: KEY}})
    assert KEY not in str(caught.value)


def test_the_values_of_headers_are_shown_nowhere() -> None:
    for wrong in (KEY, [KEY], {"X-Title": [KEY]}):
        with pytest.raises(BadInputError, match="extra_headers must ") as caught:
            Arguments.read({"extra_headers": wrong})
        assert KEY not in str(caught.value)
    given = Arguments.read({"extra_headers": {"X-Title": KEY}})
    assert given.extra_headers == {"X-Title": KEY}
    assert KEY not in repr(given)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://me:hidden@host:8000/v1", "the address of host holds credentials: set OPENAI_API_KEY"),
        ("https://hidden@host/v1", "the address of host holds credentials"),
        ("http://host/v1?api-key=hidden", "the address of host holds a query"),
        ("ftp://me:hidden@host/v1", "the address of host holds credentials"),
    ],
)
def test_an_address_holds_nothing_but_the_place(address: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        OpenaiBackend(EngineSpec("openai", environment=address), "nowhere", {}, lambda *_: None).load()
    assert "hidden" not in str(caught.value)


def test_sglang_would_ignore_stop_tokens_beside_ignore_eos(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    both: dict[str, Any] = {"ignore_eos": True, "stop_token_ids": [7]}
    generate(load(), [[1]], **both)
    assert (fake.bodies[0]["ignore_eos"], fake.bodies[0]["stop_token_ids"]) == (True, [7])
    fake.models[0]["owned_by"] = "sglang"
    backend = load()
    with pytest.raises(UnsupportedError, match="'sglang' ignores stop_token_ids where ignore_eos is asked for"):
        generate(backend, [[1]], **both)
    assert not fake.bodies
    generate(backend, [[1]], ignore_eos=True)
    generate(backend, [[1]], stop_token_ids=[7])
    assert [(body["ignore_eos"], body["stop_token_ids"]) for body in fake.bodies] == [(True, []), (False, [7])]


def test_a_server_that_is_not_there_is_one_line(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    fake.server.shutdown()
    fake.server.server_close()
    with pytest.raises(EngineStartError, match=r"127\.0\.0\.1:\d+ does not answer .*address is right") as caught:
        load(max_retries=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["environment", "file"])
def test_the_key_is_found_sent_and_never_shown(
    fake: Fake,
    load: Callable[..., openai_backends.Loaded],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    place: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.key = KEY
    if place == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
    else:
        (tmp_path / ".env").write_text(f'# keys\nexport OTHER=1\nOPENAI_API_KEY="{KEY}" # mine\n')
    backend = load(max_retries=0)
    outputs = generate(backend, [[1]])
    assert fake.headers[-1]["authorization"] == f"Bearer {KEY}"
    said = [json.dumps([backend.info, backend.settings(), outputs, backend.progress])]
    # The fake server repeats the key that it was given, as real ones do.
    fake.key = "another"
    with pytest.raises(EngineError, match=r"Incorrect API key provided: Bearer \*\*\*") as caught:
        generate(backend, [[1]])
    with pytest.raises(EngineStartError, match="refuses the API key") as refused:
        load()
    talk = backend.talk(requests=[{"endpoint": "models"}])["answers"]
    assert talk[0]["status"] == 401
    captured = capfd.readouterr()
    said += [str(caught.value), str(refused.value), talk[0]["error"], caplog.text, captured.out, captured.err]
    assert "Incorrect API key provided: Bearer ***" in said[1]
    assert KEY not in "".join(said)


def test_a_wrong_key_and_none_are_told_apart_from_the_right_one(
    fake: Fake, load: Callable[..., openai_backends.Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedError, match="was given no API key"):
        load().talk(requests=[{"endpoint": "models", "key": "wrong"}])
    fake.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked = [{"endpoint": "completions", "body": {"prompt": [1]}, "key": key} for key in ("right", "wrong", "none", "right")]
    answers = load().talk(requests=asked, concurrency=2)["answers"]
    assert [answer["status"] for answer in answers] == [200, 401, 401, 200]
    assert sorted(headers.get("authorization", "") for headers in fake.headers[-4:]) == [
        "", "Bearer llminfer-wrong-key", f"Bearer {KEY}", f"Bearer {KEY}",
    ]  # fmt: skip
    with pytest.raises(BadInputError, match=r"a request has no 'enpoint'.*'endpoint'"):
        load().talk(requests=[{"enpoint": "models"}])


@pytest.mark.fault("servers", "extra_body holds what a test sets", "refused, with the way out")
def test_what_a_test_sets_is_not_overridden(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    with pytest.raises(
        BadInputError, match=r"extra_body holds 'temperature': 0.9, which a test sets to 0.0; leave it out, or give null"
    ):
        load(extra_body={"temperature": 0.9})
    # The same value, none at all and a field of the server's own are no contradiction.
    backend = load(extra_body={"temperature": 0.0, "seed": None, "provider": {"order": ["a"]}})
    generate(backend, [[5]])
    assert {name: fake.bodies[-1].get(name) for name in ("temperature", "seed", "provider")} == {
        "temperature": 0.0,
        "seed": None,
        "provider": {"order": ["a"]},
    }


@pytest.mark.fault("secrets", "a server repeats the key in lists and answers", "taken out of every reply")
def test_a_key_that_a_server_repeats_is_nowhere(
    fake: Fake, load: Callable[..., openai_backends.Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fake.models[0]["note"] = f"you sent Bearer {KEY}"
    fake.models[0]["nested"] = {KEY: [KEY, 1]}
    sound = fake.answer

    def echo(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, message = sound(path, body)
        message["choices"][0]["text"] = f"the key is {KEY}"
        return status, message

    fake.answer = echo
    backend = load()
    settings = backend.settings()
    assert settings["resolved"]["note"] == "you sent Bearer ***"
    assert KEY not in json.dumps(settings)
    assert generate(backend, [[5]])[0]["text"] == "the key is ***"
