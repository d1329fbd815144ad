"""A tokenizer.json as the fields that GGUF keeps of it: tokens, their kinds, merges, and the name of its pre-tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens in GGUF."""

_GPT2 = "gpt2"
_DIGITS = "digits"
_COMMON = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (_GPT2,): "gpt-2",
    (_DIGITS, _GPT2): "smollm",
    (_COMMON % r"\p{N}",): "qwen2",
    (_COMMON % r"\p{N}{1,3}",): "llama-bpe",
}
"""How text is split before pairs are merged (single digits, GPT-2's words, a regular expression) to llama.cpp's name of it."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as GGUF stores it.

    Attributes:
        tokens: Text by token id, as many as the embedding has rows; the rows without a token are named ``[UNUSED…]``.
        kinds: GGUF's kind of each token (``NORMAL``, ``CONTROL``, ``USER_DEFINED``, ``UNUSED``).
        merges: Pairs of the byte-pair encoding in their order, as ``"left right"``.
        pre_tokenizer: llama.cpp's name for how text is split before merging.
        chat_template: Source of the chat template; empty without one.
    """

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    pre_tokenizer: str
    chat_template: str


def read_vocabulary(folder: Path, size: int) -> Vocabulary | None:
    """The tokenizer in ``folder``, padded to ``size`` tokens with unused ones; None where there is no tokenizer.json.

    Raises:
        UnsupportedError: a kind of tokenizer for which llama.cpp's name is not known here.
        BadInputError: a damaged file, or more tokens than the model has.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = _read_object(file)
    try:
        return _vocabulary(folder, tokenizer, size)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadInputError(f"{file} is no intact tokenizer ({type(error).__name__}: {error}); fetch the file again") from error


def _vocabulary(folder: Path, tokenizer: dict[str, Any], size: int) -> Vocabulary:
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        name = "BPE with byte fallback" if model.get("byte_fallback") else repr(model.get("type"))
        raise UnsupportedError(f"a tokenizer of kind {name} is not converted to GGUF here", "give the path of a .gguf file instead")
    tokens = [f"[UNUSED{number}]" for number in range(size)]
    kinds = [UNUSED] * size
    added = {
        entry["content"]: (entry["id"], CONTROL if entry.get("special") else USER_DEFINED) for entry in tokenizer["added_tokens"]
    }
    for text, (number, kind) in {**{text: (number, NORMAL) for text, number in model["vocab"].items()}, **added}.items():
        if not 0 <= number < size:
            raise BadInputError(f"the tokenizer in {folder} has the token id {number}; the model's vocab_size is {size}")
        tokens[number], kinds[number] = text, kind
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return Vocabulary(tuple(tokens), tuple(kinds), merges, pre_tokenizer(tokenizer), _chat_template(folder))


def pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json splits text.

    Raises:
        UnsupportedError: none is known that splits in the same way; the steps are named.
    """
    found = tokenizer.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", []) if found.get("type") == "Sequence" else [found] if found else []
    words = tuple(word for step in steps for word in _words(step))
    if words not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"no name in llama.cpp is known here for the pre-tokenizer {json.dumps(found)[:300]}",
            "give the path of a .gguf file instead",
        )
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if normalizer not in {None, "NFC"}:
        raise UnsupportedError(f"the normalizer {normalizer} has no place in a GGUF file", "give the path of a .gguf file instead")
    return PRE_TOKENIZERS[words]


def _words(step: Mapping[str, Any]) -> list[str]:
    kind = step.get("type")
    if kind == "Digits" and step.get("individual_digits"):
        return [_DIGITS]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [_GPT2] if step.get("use_regex", True) else []
    pattern = step.get("pattern")
    if kind == "Split" and isinstance(pattern, dict) and "Regex" in pattern and step.get("behavior") == "Isolated":
        return [pattern["Regex"]] if not step.get("invert") else [f"not {pattern['Regex']}"]
    return [str(kind)]


def _chat_template(folder: Path) -> str:
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        return separate.read_text(encoding="utf-8")
    file = folder / "tokenizer_config.json"
    template = _read_object(file).get("chat_template") if file.is_file() else None
    if isinstance(template, list):
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else ""


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{file} is no JSON ({error}); fetch the file again") from error
    if not isinstance(found, dict):
        raise BadInputError(f"{file} holds a {type(found).__name__} instead of an object; fetch the file again")
    return found
