"""Event streams and replies of servers that are legal and unusual, and those that are neither: what is read and what is said."""

from __future__ import annotations

import http.server
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("openai")

from pytest_llminfer.errors import EngineStartError, TransportError
from pytest_llminfer.worker.backends.openai.arguments import Arguments
from pytest_llminfer.worker.backends.openai.events import DONE, Events, Lines, messages
from pytest_llminfer.worker.backends.openai.scoring import scores
from pytest_llminfer.worker.backends.openai.transport import Failure, Transport
from tests.support.engines import openai_backends
from tests.support.engines.openai_backends import generate
from tests.support.openai_server import Fake

fake, load = openai_backends.fake, openai_backends.load

ONE, TWO = ({"choices": [{"delta": {"content": text}}]} for text in ("Hel", "lo"))
PLAIN = f"data: {json.dumps(ONE)}\n\ndata: {json.dumps(TWO)}\n\ndata: [DONE]\n\n"
LEGAL = {
    "plain": PLAIN,
    "retry": "retry: 3000\n\n" + PLAIN,
    "id": "id: 1\n\n" + PLAIN.replace("data: {", "id: 7\ndata: {"),
    "comment": ": ping\n\n" + PLAIN.replace("\n\n", "\n\n: ping\n\n"),
    "byte order mark": "\ufeff" + PLAIN,
    "carriage returns": PLAIN.replace("\n", "\r\n"),
    "carriage returns alone": PLAIN.replace("\n", "\r"),
    "no blank": PLAIN.replace("data: ", "data:"),
    "events of one line": PLAIN.replace("\n\n", "\n"),
    "no end": PLAIN.removesuffix("data: [DONE]\n\n"),
    "no last blank line": PLAIN.removesuffix("data: [DONE]\n\n").rstrip("\n"),
    "data over two lines": f'data: {{"choices":\ndata: {json.dumps(ONE["choices"])}}}\n\ndata: {json.dumps(TWO)}\n\n',
    "event names": PLAIN.replace("data: {", "event: completion\ndata: {"),
}


@pytest.fixture
def streaming() -> Iterator[Callable[..., list[Any]]]:
    """What is read of a server that sends these bytes, in pieces with a pause before each."""
    pieces: list[bytes] = []
    pause = [0.0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for piece in pieces:
                time.sleep(pause[0])
                try:
                    self.wfile.write(piece)
                    self.wfile.flush()
                except OSError:
                    return

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def read(*sent: bytes, wait: float = 0.0, **arguments: Any) -> list[Any]:
        pieces[:], pause[0] = sent, wait
        transport = Transport(f"http://127.0.0.1:{server.server_port}/v1", "sk-secret", Arguments.read(arguments))

        async def collect() -> list[Any]:
            return [chunk async for chunk in transport.stream("/chat/completions", {"model": "served"})]

        try:
            return list(transport.run(collect()))
        finally:
            transport.close()

    yield read
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", LEGAL)
@pytest.mark.fault("servers", "an event stream with retry, id, comments, a byte order mark, odd line breaks", "read")
def test_legal_streams_are_read(streaming: Callable[..., list[Any]], name: str) -> None:
    assert streaming(LEGAL[name].encode()) == [ONE, TWO]


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(LEGAL)), cuts=st.lists(st.integers(0, 300), max_size=6))
def test_where_the_pieces_of_a_stream_end_does_not_matter(name: str, cuts: list[int]) -> None:
    data = LEGAL[name].encode()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    lines, events = Lines(), Events()
    found = [line for start, end in itertools.pairwise(places) for line in lines.feed(data[start:end])]
    found += lines.feed(b"", final=True)
    read = [message for line in found for message in messages(events.feed(line))] + list(messages(events.end()))
    assert [message for message in read if message != DONE] == [ONE, TWO]


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_no_stream_is_more_than_no_json(data: bytes) -> None:
    lines, events = Lines(), Events()
    said = []
    for line in [*lines.feed(data), *lines.feed(b"", final=True)]:
        try:
            list(messages(events.feed(line)))
        except ValueError as error:
            said.append(str(error))
    assert all("an event that is no JSON" in each for each in said)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"data: {broken\n\n", "ValueError: the stream has an event that is no JSON: '{broken'"),
        (b'data: {"error": {"message": "out of sk-secret"}}\n\n', "APIError: out of ***"),
        (b'data: ["choices"]\n\n', "UnexpectedReply 200: a reply is a JSON object, not a list; the reply begins: "),
        (b'data: {"choices": [{"delta": "x"}]}\n\n', "UnexpectedReply 200: delta is an object, not text; the reply begins: "),
    ],
)
@pytest.mark.fault(
    "servers", "an event stream that is no JSON, or an error, or of another shape", "a failed request that shows the event"
)
def test_a_stream_that_is_not_legal_is_a_failed_request(streaming: Callable[..., list[Any]], sent: bytes, said: str) -> None:
    *before, last = streaming(b"data: " + json.dumps(ONE).encode() + b"\n\n" + sent)
    assert before == [ONE]
    assert isinstance(last, Failure)
    assert str(last).startswith(said)


@pytest.mark.fault("servers", "a server sends a byte at a time", "the request fails at its time")
def test_a_request_has_a_total_time(streaming: Callable[..., list[Any]]) -> None:
    """A comment every tenth of a second is no silence, and would go on for a minute."""
    started = time.monotonic()
    assert streaming(*[b": wait\n\n"] * 600, wait=0.1, timeout=1, max_retries=0) == [
        Failure("Timeout", 0, "no whole answer within 1 s")
    ]
    assert time.monotonic() - started < 10


WRONG: dict[str, dict[str, Any]] = {
    "content is text, not a list": {"choices": [{"message": {"content": [{"type": "text", "text": "4"}]}}]},
    "choices is a list of objects, not an object": {"choices": {"0": {}}},
    "text is text, not a number": {"choices": [{"text": 4}]},
    "token_ids is a list of whole numbers or nothing": {"choices": [{"text": "4", "token_ids": ["x"]}]},
    "message is an object, not text": {"choices": [{"message": "4"}]},
    "finish_reason is text, not an object": {"choices": [{"text": "4", "finish_reason": {}}]},
    "logprobs are not those of completions or of chats": {"choices": [{"text": "4", "logprobs": {"top_logprobs": [3]}}]},
}


@pytest.mark.parametrize("said", WRONG)
@pytest.mark.fault("servers", "a reply of another shape, with status 200", "a failed request that shows its start")
def test_a_reply_of_another_shape_is_a_failed_request_that_shows_it(
    fake: Fake, load: Callable[..., openai_backends.Loaded], said: str
) -> None:
    backend = load()
    fake.answer = lambda *_: (200, WRONG[said])
    with pytest.raises(
        TransportError, match=f"1 of 1 requests .* failed .*; first: UnexpectedReply 200: {said}; the reply begins: .*choices"
    ):
        generate(backend, [[5]])


@pytest.mark.fault("servers", "the same while loading", "one line")
def test_a_reply_of_another_shape_while_loading_is_told(fake: Fake, load: Callable[..., openai_backends.Loaded]) -> None:
    fake.answer = lambda *_: (200, {"choices": [{"message": "4", "text": 4}]})
    with pytest.raises(
        EngineStartError, match=r"answers no probe of 'served' .*UnexpectedReply 200: message is an object, not text"
    ):
        load()


@pytest.mark.parametrize("steps", [None, "x", [None, "x"], [None, {"7": 1.0}], [None, {"seven": {"logprob": -1.0, "rank": 1}}]])
@pytest.mark.fault("servers", "log-probabilities of a prompt of another shape", "one line")
def test_scores_of_another_shape_are_told(steps: Any) -> None:
    from pytest_llminfer.errors import EngineError

    with pytest.raises(EngineError, match="asked about a prompt of 2 tokens and told 0 positions, or others"):
        scores({"choices": [{"prompt_logprobs": steps}]}, [5, 7], top=1, last=1)
