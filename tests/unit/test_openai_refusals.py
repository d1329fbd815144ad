"""What the openai backend refuses, or is refused by a server, and the key that it never shows."""

from __future__ import annotations

import json
import logging
import runpy
from pathlib import Path

import pytest

from pytest_llminfer.errors import BadInputError, EngineError, EngineStartError, UnsupportedError
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.openai.backend import OpenaiBackend

pytest.importorskip("openai")

SHARED = runpy.run_path(str(Path(__file__).with_name("openai_backends.py")))
fake, load, generate = (SHARED[name] for name in ("fake", "load", "generate"))
KEY = "sk-llminfer-secret-0123456789"


def test_several_models_must_be_told_apart(fake, load) -> None:
    fake.models.append({"id": "other", "owned_by": "vllm"})
    with pytest.raises(BadInputError, match=r"2 models; name one.*other, served"):
        load()
    assert load(cell={"model": "other"}).settings()["resolved"]["model"] == "other"
    assert load(model="other").settings()["resolved"]["model"] == "other"
    with pytest.raises(BadInputError, match=r"no model 'severed'; it has: other, served\. Did you mean 'served'\?"):
        load(model="severed")


def test_wrong_arguments_and_addresses_are_refused(fake) -> None:
    def refused(match: str, address: str = fake.address, **engine_args) -> None:
        with pytest.raises(BadInputError, match=match):
            OpenaiBackend(EngineSpec("openai", environment=address), "nowhere", engine_args, print).load()

    refused("unknown engine argument 'concurency'.*Did you mean 'concurrency'", concurency=3)
    refused("concurrency must be a whole number of at least 1", concurrency=0)
    refused("timeout must be a number", timeout="soon")
    refused("unknown api 'chats'.*Did you mean 'chat'", api="chats")
    refused("extra_body must be an object", extra_body=[1])
    refused("give the key as OPENAI_API_KEY", extra_headers={"Authorization": "Bearer x"})
    refused("is no address of a server", address="127.0.0.1:8000/v1")
    refused("holds credentials", address="http://me:secret@127.0.0.1:8000/v1")
    refused("example.com needs an API key: set OPENAI_API_KEY", address="http://example.com/v1")
    refused("openrouter.ai needs an API key: set OPENROUTER_API_KEY", address="https://openrouter.ai/api/v1")


def test_a_server_that_is_not_there_is_one_line(fake, load) -> None:
    fake.server.shutdown()
    fake.server.server_close()
    with pytest.raises(EngineStartError, match=r"127\.0\.0\.1:\d+ does not answer .*address is right") as caught:
        load(max_retries=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["environment", "file"])
def test_the_key_is_found_sent_and_never_shown(fake, load, monkeypatch, tmp_path, caplog, capfd, place: str) -> None:
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
    with pytest.raises(EngineError) as caught:
        generate(backend, [[1]])
    with pytest.raises(EngineStartError, match="refuses the API key") as refused:
        load()
    talk = backend.talk(requests=[{"endpoint": "models"}])["answers"]
    assert talk[0]["status"] == 401
    captured = capfd.readouterr()
    said += [str(caught.value), str(refused.value), talk[0]["error"], caplog.text, captured.out, captured.err]
    assert "Incorrect API key provided: Bearer ***" in said[1]
    assert KEY not in "".join(said)


def test_a_wrong_key_and_none_are_told_apart_from_the_right_one(fake, load, monkeypatch) -> None:
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
