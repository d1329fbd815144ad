"""The openai backend against a small server in a thread: what it sends, and what it makes of answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from pytest_llminfer.errors import BadInputError, EngineError, UnsupportedError
from tests.support.engines import openai_backends
from tests.support.engines.openai_backends import generate
from tests.support.openai_server import Fake
from tests.support.paths import REFERENCE, REPOSITORY

pytest.importorskip("openai")

fake, load = openai_backends.fake, openai_backends.load


def test_answers_come_in_order_with_as_many_requests_at_once_as_allowed(
    fake: Fake, load: Callable[..., openai_backends.Loaded]
) -> None:
    backend = load(concurrency=3)
    fake.delay = 0.03
    fake.most_under_way = 0
    outputs = generate(backend, [[number] for number in range(20)])
    assert [output["token_ids"] for output in outputs] == [[number + 1] for number in range(20)]
    assert fake.most_under_way == 3
    assert [step for step in backend.progress if step[0] == "generating"] == [("generating", n, 20) for n in range(1, 21)]


def test_known_engines_get_every_sampling_field_and_unknown_servers_only_those_asked_for(
    fake: Fake, load: Callable[..., openai_backends.Loaded]
) -> None:
    generate(load(), [[1]])
    (body,) = fake.bodies
    assert body["temperature"] == 0.0
    assert {name: body[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens")} == {
        "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0, "max_tokens": 1,
    }  # fmt: skip
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.0, 0.0)
    assert body["ignore_eos"] is False
    assert body["stop_token_ids"] == []
    assert "stop" not in body
    generate(load(), [[1]], stop=["Question:", "</s>"])
    assert fake.bodies[-1]["stop"] == ["Question:", "</s>"]
    fake.bodies[1:] = []

    fake.models[0]["owned_by"] = "somebody"
    backend = load()
    generate(backend, [[1]])
    ours = {"top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos", "stop_token_ids"}
    assert not ours & set(fake.bodies[0])
    generate(backend, [[1]], top_k=5, ignore_eos=True)
    assert (fake.bodies[1]["top_k"], fake.bodies[1]["ignore_eos"]) == (5, True)


def test_fields_of_the_user_go_along_and_null_takes_one_out(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    provider = {"order": ["one"]}
    backend = load(extra_body={"provider": provider, "seed": None}, extra_headers={"X-Title": "tests"})
    generate(backend, [[1]])
    assert fake.bodies[0]["provider"] == provider
    assert "seed" not in fake.bodies[0]
    assert fake.headers[-1]["x-title"] == "tests"


def test_logprobs_come_with_ids_most_likely_first(load: Callable[..., openai_backends.Loaded]) -> None:
    backend = load()
    assert "generate:logprobs" in backend.capabilities
    (output,) = generate(backend, [[7]], logprobs=2)
    assert output["top_ids"].tolist() == [[8, 3]]
    assert output["top_logprobs"].tolist() == [[-0.25, -1.5]]
    with pytest.raises(UnsupportedError, match="at most 20"):
        generate(backend, [[7]], logprobs=21)


def test_a_busy_server_is_asked_again_and_waited_for(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    backend = load()
    times: list[float] = []

    def busy_twice(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        times.append(time.monotonic())
        return (429, {"error": {"message": "slow down"}}) if len(times) < 3 else fake.continue_numbers(path, body)

    fake.answer = busy_twice
    assert generate(backend, [[4]])[0]["token_ids"] == [5]
    assert len(times) == 3
    assert times[2] - times[1] > times[1] - times[0] > 0.3


def test_requests_that_fail_are_no_wrong_answers(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    backend = load(max_retries=1, concurrency=4)
    fake.answer = lambda path, body: (500, {}) if body["prompt"][0] in (3, 5) else fake.continue_numbers(path, body)
    with pytest.raises(EngineError, match=r"2 of 8 requests .* failed while generating; first: InternalServerError.*500"):
        generate(backend, [[number] for number in range(8)])
    assert sum(body["prompt"] == [3] for body in fake.bodies) == 2


def test_a_broken_server_is_not_asked_to_the_end(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    backend = load(max_retries=0, concurrency=2)
    fake.answer = lambda *_: (500, {})
    with pytest.raises(EngineError, match=r"1\d of 100 requests .*\(8\d more were not asked\)"):
        generate(backend, [[number] for number in range(100)])
    assert len(fake.bodies) < 20


def test_a_connection_that_breaks_is_counted_too(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    backend = load(max_retries=1)
    vars(fake.server)["handle_error"] = lambda *_: None

    def broken(_path: str, _body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        raise ConnectionAbortedError

    fake.answer = broken
    with pytest.raises(EngineError, match=r"1 of 1 requests .* first: APIConnectionError: Connection error"):
        generate(backend, [[1]])
    assert len(fake.bodies) == 2


@pytest.mark.parametrize(("said", "ours"), [("stop", "stop"), ("length", "length"), ("eos", "stop"), ("max_tokens", "length")])
def test_finish_reasons_are_in_our_words(fake: Fake, load: Callable[..., openai_backends.Loaded], said: str, ours: str) -> None:
    backend = load()
    fake.answer = lambda *_: (200, {"choices": [{"text": "x", "finish_reason": said, "token_ids": [9]}]})
    assert generate(backend, [[1]])[0]["finish_reason"] == ours


@pytest.mark.parametrize("said", ["content_filter", "abort", None])
def test_an_answer_that_was_broken_off_is_an_error(
    fake: Fake, load: Callable[..., openai_backends.Loaded], said: str | None
) -> None:
    backend = load()
    fake.answer = lambda *_: (200, {"choices": [{"text": "x", "finish_reason": said, "token_ids": [9]}]})
    with pytest.raises(EngineError, match=said or "nothing"):
        generate(backend, [[1]])


def test_chat_is_used_where_token_ids_are_refused(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    def chat_only(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        refused = (404, {"detail": "Not Found"}) if not path.endswith("/chat/completions") else None
        return refused or fake.continue_numbers(path, body)

    fake.answer = chat_only
    backend = load()
    assert {"generate", "generate:messages"} <= backend.capabilities
    conversations = [[{"role": "user", "content": "abc"}], [{"role": "user", "content": "abcde"}]]
    assert [output["text"] for output in generate(backend, conversations)] == ["<4>", "<6>"]
    assert fake.bodies[0]["messages"] == conversations[0]
    with pytest.raises(UnsupportedError, match="takes messages"):
        generate(backend, [[1, 2]])
    assert backend.settings()["resolved"]["api"] == "chat"


def test_a_server_that_reads_token_ids_as_text_is_not_believed(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    def as_text(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, message = fake.continue_numbers(path, body)
        return status, {**message, "usage": {"prompt_tokens": 4, "completion_tokens": 1}}

    fake.answer = as_text
    assert load().settings()["resolved"]["api"] == "chat"


def test_token_ids_come_from_the_text_where_the_server_gives_none(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    pytest.importorskip("tokenizers")
    said = "There are 12 apples."

    def text_only(_path: str, _body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, {"choices": [{"text": said, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}

    fake.answer = text_only
    backend = load(str(REFERENCE))
    assert backend.settings()["resolved"]["token_ids"].startswith("from the text")
    assert backend.info["dtype"] == "bf16"
    (output,) = generate(backend, [[20]], max_tokens=32)
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(REFERENCE / "tokenizer.json")).encode(said, add_special_tokens=False).ids
    assert output["token_ids"] == [*ids, 2]
    assert output["text"] == said
    assert generate(load(), [[20]])[0]["token_ids"] == []


def test_text_is_sent_where_it_is_asked_for_and_means_the_same_tokens(
    fake: Fake, load: Callable[..., openai_backends.Loaded]
) -> None:
    tokenizers = pytest.importorskip("tokenizers")

    def text_only(_path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if isinstance(body["prompt"], list):
            return 422, {"detail": "prompt must be a string"}
        return 200, {"choices": [{"text": " 2", "finish_reason": "length"}], "usage": {}}

    fake.answer = text_only
    backend = load(str(REFERENCE), api="completions")
    ids = (
        tokenizers.Tokenizer.from_file(str(REFERENCE / "tokenizer.json"))
        .encode("<|im_start|>user\n1 + 1", add_special_tokens=False)
        .ids
    )
    generate(backend, [ids])
    assert fake.bodies[-1]["prompt"] == "<|im_start|>user\n1 + 1"
    with pytest.raises(BadInputError, match="read as other token ids"):
        generate(
            backend,
            [
                [
                    *ids,
                    *(
                        tokenizers.Tokenizer.from_file(str(REFERENCE / "tokenizer.json")).encode(letter).ids[0]
                        for letter in "there"
                    ),
                ]
            ],
        )
    with pytest.raises(BadInputError, match=r"tokenizer\.json"):
        load(api="completions")


def test_a_gguf_file_has_its_tokenizer_beside_it(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    fake.models[0]["owned_by"] = "me"
    fake.answer = lambda *_: (200, {"choices": [{"text": "4", "finish_reason": "length"}]})
    backend = load(str(REPOSITORY / "assets" / "gguf" / "reference-Q8_0.gguf"), api="completions")
    assert (backend._offer.prompts, backend._configuration["vocab_size"], backend._end_tokens) == ("text", 1024, [2])
