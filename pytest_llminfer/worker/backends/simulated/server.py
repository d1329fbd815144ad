"""The simulated engine behind an OpenAI interface: standard library around the NumPy model, and faults for tests of serving."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, InvalidSpecError, LlminferError
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.simulated.backend import SimulatedBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_VARIABLE = "LLMINFER_SERVER_KEY"
FAULTS = {
    "wrong_finish_reason": "an answer cut at the token limit says that it ended by itself",
    "lost_chunk": "a streamed answer lacks its third token",
    "open_door": "no API key is looked at",
    "swap_concurrent": "answers to requests that wait at the same time change places",
    "slow_first_token": "the first chunk of a streamed answer comes server_fault_seconds later",
    "slow_tokens": "every further chunk comes server_fault_seconds later",
    "wrong_name": "the list of models names another one",
    "empty_chat": "a chat is answered with nothing",
    "deaf": "SIGTERM is ignored",
    "child_left": "a child process outlives the server",
}
FAULT_SECONDS = 0.5
_LOST = 2
_DEFAULTS = {"max_tokens": 16, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "seed": 0}
_MOST_LOGPROBS = 20


@dataclass(slots=True)
class Job:
    """One answer that a request waits for.

    Attributes:
        prompt: Token ids.
        sampling: The fields of ``Sampling``.
        logprobs: How many of the most likely tokens are wanted per step; 0 for none.
        done: Set when the answer or the error is there.
        output: The fields of ``Generation``; empty until then.
        error: Why there is no answer; empty where there is one.
    """

    prompt: list[int]
    sampling: dict[str, Any]
    logprobs: int
    done: threading.Event = field(default_factory=threading.Event)
    output: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Service:
    """The model, its tokenizer, and one thread that answers what waits, in the order in which it came."""

    def __init__(self, settings: dict[str, Any], key: str) -> None:
        engine_args = dict(settings["engine_args"])
        self.name, self.key = settings["name"], key
        self.fault = engine_args.pop("server_fault", "")
        self.fault_seconds = float(engine_args.pop("server_fault_seconds", FAULT_SECONDS))
        if self.fault and self.fault not in FAULTS:
            raise InvalidSpecError("server_fault", self.fault, FAULTS)
        self._backend = SimulatedBackend(EngineSpec(**settings["spec"]), settings["model_path"], engine_args, lambda *_: None)
        self.information = self._backend.load()
        self._tokenizer = _tokenizer(Path(settings["model_path"]) / "tokenizer.json")
        self._jobs: queue.Queue[Job] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
        """The engine's output for one request.

        Raises:
            BadInputError: something in the request cannot be answered.
        """
        if body.get("model", self.name) != self.name:
            raise InvalidSpecError("model", body["model"], (self.name,))
        sampling = {name: body.get(name, default) for name, default in _DEFAULTS.items()}
        sampling |= {"stop_token_ids": body.get("stop_token_ids", []), "ignore_eos": bool(body.get("ignore_eos", False))}
        logprobs = body.get("top_logprobs", 0) if chat else body.get("logprobs") or 0
        if logprobs > _MOST_LOGPROBS:
            raise BadInputError(f"at most {_MOST_LOGPROBS} log-probabilities, not {logprobs}")
        job = Job(self._ids(body.get("messages") if chat else body.get("prompt"), chat=chat), sampling, logprobs)
        self._jobs.put(job)
        job.done.wait()
        if job.error:
            raise BadInputError(job.error)
        return {**job.output, "prompt_tokens": len(job.prompt)}

    def text(self, ids: list[int]) -> str:
        """The text of tokens, without special ones; empty without a tokenizer."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if self._tokenizer else ""

    def _ids(self, prompt: Any, *, chat: bool) -> list[int]:
        if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
            return prompt
        if self._tokenizer is None or not prompt:
            raise BadInputError("give a prompt; text needs a tokenizer.json in the model's folder and the package tokenizers")
        if chat:
            turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in prompt)
            prompt = f"{turns}<|im_start|>assistant\n"
        return list(self._tokenizer.encode(prompt, add_special_tokens=False).ids)

    def _work(self) -> None:
        while True:
            waiting = [self._jobs.get()]
            while not self._jobs.empty():
                waiting.append(self._jobs.get())
            for job in waiting:
                try:
                    answer = self._backend.generate(prompts=[job.prompt], sampling=job.sampling, logprobs=job.logprobs)
                    job.output = answer["outputs"][0]
                except LlminferError as error:
                    job.error = str(error)
            if self.fault == "swap_concurrent":
                outputs = [job.output for job in waiting]
                for job, output in zip(waiting, outputs[1:] + outputs[:1], strict=True):
                    job.output = output
            for job in waiting:
                job.done.set()


def _tokenizer(file: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        return None
    return Tokenizer.from_file(str(file)) if file.is_file() else None


class Handler(BaseHTTPRequestHandler):
    """The endpoints: /health, /version, /v1/models, /v1/completions, /v1/chat/completions."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: Service

    def do_GET(self) -> None:
        """Health and version need no key; the list of models does."""
        if self.path == "/health":
            self._send(200, {})
        elif self.path == "/version":
            self._send(200, {"version": self.service.information["versions"]["engine"]})
        elif self.path == "/v1/models" and self._may_enter():
            name = "another" if self.service.fault == "wrong_name" else self.service.name
            entry = {"id": name, "object": "model", "owned_by": "simulated"}
            self._send(200, {"object": "list", "data": [entry]})
        elif self.path != "/v1/models":
            self._send(404, _error("no such page"))

    def do_POST(self) -> None:
        """An answer, whole or streamed."""
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chat = self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            self._send(404, _error("no such page"))
        elif self._may_enter():
            try:
                body = json.loads(raw)
                output = self.service.ask(body, chat=chat)
            except InvalidSpecError as error:
                self._send(404, _error(str(error)))
            except (LlminferError, ValueError) as error:
                self._send(400, _error(str(error)))
            else:
                self._answer(body, output, chat=chat)

    def log_message(self, *_: object) -> None:
        """Nothing: the log is for what goes wrong."""

    def _may_enter(self) -> bool:
        given = self.headers.get("Authorization", "")
        if self.service.key and self.service.fault != "open_door" and given != f"Bearer {self.service.key}":
            self._send(401, _error("the API key is wrong or missing"))
            return False
        return True

    def _answer(self, body: dict[str, Any], output: dict[str, Any], *, chat: bool) -> None:
        reason = output["finish_reason"]
        if chat and self.service.fault == "empty_chat":
            output = {**output, "token_ids": [], "top_ids": output["top_ids"][:0], "top_logprobs": output["top_logprobs"][:0]}
        if self.service.fault == "wrong_finish_reason" and reason == "length":
            reason = "stop"
        count = len(output["token_ids"])
        prompt = output["prompt_tokens"]
        usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
        head = {"id": "simulated", "object": "chat.completion" if chat else "text_completion", "model": self.service.name}
        if not body.get("stream"):
            self._send(
                200,
                {**head, "choices": [{**self._choice(body, output, 0, count, chat=chat), "finish_reason": reason}], "usage": usage},
            )
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for choice in self._pieces(body, output, count, chat=chat):
            self._chunk(json.dumps({**head, "choices": [choice]}))
        self._chunk(json.dumps({**head, "choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": reason}]}))
        if (body.get("stream_options") or {}).get("include_usage"):
            self._chunk(json.dumps({**head, "choices": [], "usage": usage}))
        self._chunk("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _pieces(self, body: dict[str, Any], output: dict[str, Any], count: int, *, chat: bool) -> Iterator[dict[str, Any]]:
        """One piece a token; a token that ends within a character waits for the next one."""
        start = 0
        for end in range(1, count + 1):
            if end < count and self.service.text(output["token_ids"][:end]).endswith("\N{REPLACEMENT CHARACTER}"):
                continue
            if self.service.fault == ("slow_first_token" if start == 0 else "slow_tokens"):
                time.sleep(self.service.fault_seconds)
            if not (self.service.fault == "lost_chunk" and start <= _LOST < end):
                yield {**self._choice(body, output, start, end, chat=chat, stream=True), "finish_reason": None}
            start = end

    def _choice(
        self, body: dict[str, Any], output: dict[str, Any], start: int, end: int, *, chat: bool, stream: bool = False
    ) -> dict[str, Any]:
        ids = output["token_ids"]
        text = self.service.text(ids[:end])[len(self.service.text(ids[:start])) :]
        choice: dict[str, Any] = {"index": 0}
        if chat:
            choice["delta" if stream else "message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if body.get("return_token_ids"):
            choice["token_ids"] = ids[start:end]
        if "top_ids" in output:
            pairs = zip(output["top_ids"][start:end].tolist(), output["top_logprobs"][start:end].tolist(), strict=True)
            steps = [{f"token_id:{token}": value for token, value in zip(tokens, values, strict=True)} for tokens, values in pairs]
            choice["logprobs"] = _logprobs(steps, ids[start:end], chat=chat)
        return choice

    def _send(self, status: int, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _chunk(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def _logprobs(steps: list[dict[str, float]], ids: list[int], *, chat: bool) -> dict[str, Any]:
    chosen = [f"token_id:{token}" for token in ids]
    if not chat:
        return {"tokens": chosen, "top_logprobs": steps}
    return {
        "content": [
            {
                "token": token,
                "logprob": step.get(token, 0.0),
                "top_logprobs": [{"token": other, "logprob": value} for other, value in step.items()],
            }
            for token, step in zip(chosen, steps, strict=True)
        ]
    }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def main() -> None:
    """Serve on a loopback port until SIGTERM; settings are JSON in the first argument, the key is in the environment."""
    settings = json.loads(sys.argv[1])
    stop = threading.Event()
    try:
        service = Service(settings, os.environ.pop(KEY_VARIABLE, ""))
    except LlminferError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    if service.fault == "child_left" and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if service.fault == "deaf" else lambda *_: stop.set())
    handler = type("BoundHandler", (Handler,), {"service": service})
    server = ThreadingHTTPServer(("127.0.0.1", settings["port"]), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stop.wait()
    server.shutdown()
