"""A small server with the OpenAI interface, in a thread, that can be told what to answer."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable
from email.message import Message
from typing import Any


class Fake:
    """A server that can be told what to answer. ``answer``: called with (path, body), gives (status, message)."""

    def __init__(self) -> None:
        self.models = [{"id": "served", "object": "model", "owned_by": "vllm", "max_model_len": 64}]
        self.answer: Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]] = self.continue_numbers
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.key = ""
        self.delay = 0.0
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                message = {"data": fake.models} if self.path.endswith("/models") else {"version": "1.2.3"}
                status = 200 if self.path == "/v1/models" or not self.path.endswith("/models") else 404
                self.reply(401 if fake.refuses(self.headers) and self.path == "/v1/models" else status, message)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake._lock:
                    fake.bodies.append(body)
                    fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                    fake.under_way += 1
                    fake.most_under_way = max(fake.most_under_way, fake.under_way)
                time.sleep(fake.delay)
                with fake._lock:
                    status, message = fake.answer(self.path, body)
                    fake.under_way -= 1
                self.reply(401 if fake.refuses(self.headers) else status, message)

            def reply(self, status: int, message: dict[str, Any]) -> None:
                if status == 401:
                    message = {"error": {"message": f"Incorrect API key provided: {self.headers['Authorization']}"}}
                data = json.dumps(message).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"

    def refuses(self, headers: Message[str, str]) -> bool:
        return bool(self.key) and headers["Authorization"] != f"Bearer {self.key}"

    def continue_numbers(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The answer to a prompt that starts with n is n + 1."""
        prompt = body["prompt"] if path.endswith("/completions") and "prompt" in body else [len(body["messages"][0]["content"])]
        token = prompt[0] + 1
        choice: dict[str, Any] = {"text": f"<{token}>", "finish_reason": "length", "message": {"content": f"<{token}>"}}
        if body.get("return_token_ids"):
            choice["token_ids"] = [token]
        if body.get("logprobs"):
            choice["logprobs"] = {"tokens": ["x"], "top_logprobs": [{f"token_id:{token}": -0.25, "token_id:3": -1.5}]}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": 1}}
