"""One point of the test matrix, as plain data. Standard library only: workers import this file too."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from pytest_llminfer.errors import InvalidSpecError

ENGINES = ("simulated", "transformers")
DTYPES = ("auto", "bf16", "fp16", "fp32")
QUANTIZATIONS = ("none", "int8", "nf4", "fp4")
KV_DTYPES = ("auto", "bf16", "fp16", "fp32")
WEIGHTS = ("real", "dummy")
REFERENCE_MODEL = "reference"

_CHOICES = {
    "engine": ENGINES,
    "dtype": DTYPES,
    "quantization": QUANTIZATIONS,
    "kv_dtype": KV_DTYPES,
    "weights": WEIGHTS,
}


@dataclass(frozen=True, slots=True, order=True)
class EngineSpec:
    """One cell: which engine, where, serving what, stored and spread how.

    ``str(spec)`` is the test id and leaves defaults out: ``transformers-nf4-tp2``; :meth:`parse` is its inverse.
    ``environment`` is empty for the current interpreter, otherwise the path of another one.
    ``dtype`` and ``kv_dtype`` ``auto`` mean what the model's configuration says.
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

    def __post_init__(self) -> None:
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

    def __str__(self) -> str:
        parts = [self.engine]
        if self.weights != "real":
            parts.append(self.weights)
        if self.dtype != "auto":
            parts.append(self.dtype)
        if self.quantization != "none":
            parts.append(self.quantization)
        if self.kv_dtype != "auto":
            parts.append(f"kv_{self.kv_dtype}")
        parts += [f"{name}{getattr(self, name)}" for name in ("tp", "pp", "dp") if getattr(self, name) > 1]
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
            InvalidSpecError: a word that names no engine, dtype, quantization or parallelism.
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


def _read_word(word: str) -> tuple[str, str | int]:
    if word.startswith("kv_"):
        return "kv_dtype", word[3:]
    for name in ("weights", "dtype", "quantization"):
        if word in _CHOICES[name]:
            return name, word
    if word[:2] in ("tp", "pp", "dp") and word[2:].isdigit():
        return word[:2], int(word[2:])
    known = (*WEIGHTS, *DTYPES, *QUANTIZATIONS, "kv_<dtype>", "tp<N>", "pp<N>", "dp<N>")
    raise InvalidSpecError("word", word, known)
