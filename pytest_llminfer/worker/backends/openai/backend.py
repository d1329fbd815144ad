"""A server with the OpenAI interface as a backend: what it is, and answers to prompts."""

from __future__ import annotations

import importlib
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_llminfer.checkpoints.gguf_model import config_from_gguf, read_gguf
from pytest_llminfer.errors import BadInputError, EngineError, UnsupportedError
from pytest_llminfer.spec import REFERENCE_MODEL, address_objection
from pytest_llminfer.worker.backends import requests
from pytest_llminfer.worker.backends.openai.arguments import Arguments
from pytest_llminfer.worker.backends.openai.dialects import MOST_LOGPROBS
from pytest_llminfer.worker.backends.openai.keys import find_key
from pytest_llminfer.worker.backends.openai.text import Text
from pytest_llminfer.worker.backends.packages import require, versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress
    from pytest_llminfer.worker.backends.openai.discovery import Asking, Offer, Served
    from pytest_llminfer.worker.backends.openai.transport import Transport

_VERSION_PATHS = ("/version", "/server_info", "/get_server_info")
_PASSING = ("created", "id", "parent", "permission", "permissions", "root")
"""What a list of models says that changes from start to start, or names a place of the server's machine."""
_ENDED = ("stop", "length")


class OpenaiBackend:
    """One model on a server that someone else runs, at the address ``spec.environment`` (``http://host:port/v1``).

    The package openai is imported by ``load``, so that what is missing is named first.
    """

    capabilities: frozenset[str] = frozenset()

    _transport: Transport
    _served: Served
    _offer: Offer
    _asking: Asking

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        self._spec, self._model_path, self._progress = spec, model_path, progress
        self._arguments = Arguments.read(engine_args)
        self._engine_version = ""
        self._configuration = _configuration(model_path)
        self._end_tokens = _end_tokens(model_path, self._configuration)

    @property
    def _host(self) -> str:
        """The server in messages and records: without credentials."""
        parts = urlsplit(self._address)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    def load(self) -> Message:
        """Find the model, and ask for one token to learn what the server takes and gives.

        Raises:
            BadInputError: an address that is none or holds a secret, no such model, or an endpoint that does not answer.
            EngineStartError: the server does not answer, or refuses the key.
        """
        requests.check_parallelism(self._spec)
        address = self._spec.environment
        if objection := address_objection(address):
            raise BadInputError(objection)
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInputError(f"{address!r} is no address of a server: --engine=openai@http://host:port/v1")
        started = time.perf_counter()
        return self._connect(address, find_key(address, folder=Path.cwd()), started)

    def _connect(self, address: str, key: str, started: float, *, given: str = "") -> Message:
        require("openai", purpose=f"the engine {self._spec}")
        discovery = importlib.import_module("pytest_llminfer.worker.backends.openai.discovery")
        transport = importlib.import_module("pytest_llminfer.worker.backends.openai.transport")
        self._address, self._key = address, key
        imported = time.perf_counter()
        self._progress("connecting", 0, 1)
        self._transport = transport.Transport(address, key, self._arguments)
        self._text = Text(_folder(self._model_path))
        self._served = discovery.find_model(
            self._transport,
            server=self._host,
            asked=self._arguments.model,
            fallback=self._spec.model if self._spec.model != REFERENCE_MODEL else "",
            given=given,
        )
        self._offer = discovery.find_offer(
            self._transport, self._served, server=self._host, api=self._arguments.api, has_tokenizer=self._text.present
        )
        self._asking = discovery.Asking(self._offer.api, self._offer.prompts, self._served)
        self.capabilities = discovery.capabilities(self._offer)
        self._progress("connecting", 1, 1)
        dtype = self._dtype()
        return {
            "dtype": dtype,
            "kv_dtype": self._spec.kv_dtype if self._spec.kv_dtype != "auto" else dtype,
            "device": "remote",
            "device_name": self._host,
            "device_count": 0,
            "capabilities": sorted(self.capabilities),
            "versions": {**self._versions(), **versions("openai")},
            "load_seconds": {"import": imported - started, "load": time.perf_counter() - imported},
            "end_token_ids": self._end_tokens,
            "served_model": "" if given else self._served.model,
        }

    def generate(self, *, prompts: Sequence[Any], sampling: Message, logprobs: int = 0, cache_path: str = "engine") -> Message:
        """Answers in the order of the prompts; ``concurrency`` requests at a time, each retried with back-off.

        Raises:
            UnsupportedError: another cache path than ``engine``, too many log-probabilities, or prompts that the endpoint does not
                take.
            BadInputError: sampling or token ids that no model has.
            TransportError: requests failed after all retries.
        """
        requests.check_sampling(sampling, cache_path=cache_path)
        if cache_path != "engine":
            raise UnsupportedError(
                f"a server generates in its own way only, not by cache path {cache_path!r}",
                "use cache path engine, or start the engine here, without a server",
            )
        if logprobs > MOST_LOGPROBS:
            raise UnsupportedError(
                f"servers give at most {MOST_LOGPROBS} log-probabilities a step, not {logprobs}",
                f"ask for {MOST_LOGPROBS} or fewer, or start the engine here, without a server",
            )
        bodies = [self._asking.body(self._prompt(prompt), sampling, self._top(logprobs), self._offer.extra) for prompt in prompts]
        return {"outputs": [self._output(reply, logprobs) for reply in self._send_all(bodies, "generating")]}

    def score_top(self, *, sequences: Sequence[Sequence[int]], top: int, last: int) -> Message:
        """The last tokens of given sequences, as the log-probabilities of prompts; ``concurrency`` requests at a time.

        Raises:
            UnsupportedError: the server does not return the log-probabilities of a prompt.
            TransportError: requests failed after all retries.
        """
        if not self._offer.scores_prompts:
            raise UnsupportedError(
                f"{self._host} does not return the log-probabilities of a prompt",
                "vLLM does, over completions (the engine argument api=completions)",
            )
        requests.check_tokens(sequences, least=last + 2, **self._limits())
        scoring = importlib.import_module("pytest_llminfer.worker.backends.openai.scoring")
        bodies = [scoring.body(self._asking, self._prompt(sequence), top) for sequence in sequences]
        replies = self._send_all(bodies, "scoring")
        scores = [scoring.scores(reply, ids, top=top, last=last) for reply, ids in zip(replies, sequences, strict=True)]
        return {"scores": scores}

    def _send_all(self, bodies: Sequence[Message], doing: str) -> list[Message]:
        transport = importlib.import_module("pytest_llminfer.worker.backends.openai.transport")
        replies: list[Message] = self._transport.run(
            self._transport.all(
                [partial(self._transport.post, self._asking.path, body) for body in bodies],
                concurrency=self._arguments.concurrency,
                done=lambda ended: self._progress(doing, ended, len(bodies)),
            )
        )
        self._refuse(replies, transport)
        return replies

    def _refuse(self, replies: Sequence[Any], transport: Any) -> None:
        transport.refuse_failures(replies, server=self._host, what="generating")

    def _top(self, logprobs: int) -> int:
        return logprobs if self._offer.gives_logprobs else 0

    def _prompt(self, prompt: Any) -> Any:
        """A prompt as the server takes it: token ids, text or messages."""
        conversation = bool(prompt) and isinstance(prompt[0], dict)
        if conversation != (self._offer.prompts == "messages"):
            takes = self._offer.prompts.replace("_", " ")
            raise UnsupportedError(
                f"{self._host} is asked over {self._offer.api} and takes {takes}",
                "the engine argument api chooses another endpoint",
            )
        if conversation:
            return list(prompt)
        requests.check_tokens([prompt], **self._limits())
        return self._text.prompt(prompt) if self._offer.prompts == "text" else list(prompt)

    def _limits(self) -> dict[str, int]:
        size, positions = (self._configuration.get(name) for name in ("vocab_size", "max_position_embeddings"))
        return {"vocab_size": size or 1 << 31, "max_positions": positions or 1 << 31}

    def _output(self, reply: Message, logprobs: int) -> Message:
        answers = importlib.import_module("pytest_llminfer.worker.backends.openai.answers")
        answer = answers.Answer()
        answer.add(reply)
        if answer.ended_by not in _ENDED:
            raise EngineError(f"{self._host} ended an answer by {answer.ended_by!r}, which is neither its end nor the limit")
        return {
            "token_ids": self._token_ids(answer),
            "finish_reason": answer.ended_by,
            "text": answer.text,
            "cached_tokens": answer.cached_tokens,
            **answer.top(logprobs),
        }

    def _token_ids(self, answer: Any) -> list[int]:
        """As the server gave them; otherwise from the text, with the end token where the model has only one."""
        if answer.token_ids is not None:
            return list(answer.token_ids)
        if not self._text.present:
            return []
        ids = self._text.encode(answer.text)
        return [*ids, *self._end_tokens] if answer.ended_by == "stop" and len(self._end_tokens) == 1 else ids

    def settings(self) -> Message:
        """What the server says of its model, and how it is asked."""
        from_text = "from the text, by the model's tokenizer" if self._text.present else "unknown: no tokenizer.json is here"
        return {
            "resolved": {
                **{name: value for name, value in self._served.entry.items() if name not in _PASSING},
                "model": self._served.model,
                "dialect": self._served.dialect.name,
                "api": self._offer.api,
                "prompts": self._offer.prompts,
                "token_ids": "from the server" if self._offer.gives_ids else from_text,
                "logprobs": self._offer.gives_logprobs,
                "concurrency": self._arguments.concurrency,
            },
            "defaults": {},
            "versions": self._versions(),
        }

    def talk(self, *, requests: Sequence[Message], concurrency: int = 1) -> Message:
        """``{"answers": [...]}``: raw exchanges with the server, timed here (see ``talk.Talk``), none of them retried."""
        talk = importlib.import_module("pytest_llminfer.worker.backends.openai.talk")
        asks = talk.Talk(self._transport, self._served, self._offer, has_key=bool(self._key), prompt=self._prompt)
        return {"answers": asks(requests, concurrency=concurrency, progress=self._progress)}

    def close(self) -> None:
        """Close the connections."""
        if hasattr(self, "_transport"):
            self._transport.close()

    def _dtype(self) -> str:
        """``auto`` means what the model's configuration says; without one it stays unknown."""
        if self._spec.dtype != "auto":
            return self._spec.dtype
        name = self._configuration.get("dtype") or self._configuration.get("torch_dtype") or "auto"
        return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(str(name), str(name))

    def _versions(self) -> dict[str, str]:
        """The server's own version, from the paths where known servers report it."""
        if not self._engine_version:
            root = self._address.removesuffix("/").removesuffix("/v1")
            found = (self._transport.get(f"{root}{path}", max_retries=0) for path in _VERSION_PATHS)
            version = next((reply["version"] for reply in found if isinstance(reply, dict) and reply.get("version")), "")
            self._engine_version = f"{self._served.dialect.name} {version}".strip()
        return {"engine": self._engine_version}


def _folder(model_path: str) -> Path:
    """Where the tokenizer lies: beside a GGUF file, otherwise in the model's folder."""
    path = Path(model_path)
    return path.parent if path.suffix == ".gguf" else path


def _configuration(model_path: str) -> dict[str, Any]:
    """The model's config.json, or what a GGUF file says in its place; empty for a model that is not here."""
    path = Path(model_path)
    if path.suffix == ".gguf" and path.is_file():
        return config_from_gguf(read_gguf(path))
    file = path / "config.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _end_tokens(model_path: str, configuration: Mapping[str, Any]) -> list[int]:
    """The ids that end an answer, as generation_config.json or config.json name them."""
    file = _folder(model_path) / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = generation.get("eos_token_id", configuration.get("eos_token_id"))
    return sorted(found) if isinstance(found, list) else [found] if isinstance(found, int) else []
