"""The reference model's tokenizer: byte-level BPE, 1,024 tokens, every digit by itself, ChatML."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING

from synthetic_problems import stream
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from synthetic_numbers import Difficulty

VOCABULARY = 1024
PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = [PAD, TURN_START, TURN_END]
"""Ids 0, 1 and 2; the end of a turn is also the end of a generation."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_WORD = re.compile(r"[0-9]|'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?=[0-9]|$)|\s+(?!\S)|\s+")


def train_tokenizer(extra_texts: Iterable[str], *, difficulty: Difficulty, problems: int = 20000) -> Tokenizer:
    """Train the tokenizer on training-side problems and on the texts that are put around them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    drawn = islice(stream("training", seed="tokenizer", difficulty=difficulty), problems)
    tokenizer.train_from_iterator([*extra_texts, *(f"{p.question}\n{p.answer}" for p in drawn)], trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_positions: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    # Written by hand: Transformers 5 would name a class that other engines do not know.
    settings = {
        "added_tokens_decoder": {
            str(number): {
                "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True,
            }
            for number, token in enumerate(SPECIALS)
        },
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "model_max_length": max_positions,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token that the tokenizer must have."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise RuntimeError(f"the tokenizer has no token {token}")
    return int(found)


class CachedEncoder:
    """Encodes plain ASCII text without special tokens, one dictionary look-up a word.

    The words are those of the tokenizer's own pre-tokenizer, so the ids are the same; :meth:`check` proves it on given texts.
    It is about ten times as fast as encoding, and a training run encodes millions of problems that share a few thousand words.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        ids: list[int] = []
        known = self._ids
        for word in _WORD.findall(text):
            found = known.get(word)
            if found is None:
                found = known[word] = self._tokenizer.encode(word, add_special_tokens=False).ids
            ids += found
        return ids

    def check(self, texts: Iterable[str]) -> None:
        """Raise AssertionError if any text would be encoded otherwise by the tokenizer itself."""
        for text in texts:
            if self(text) != self._tokenizer.encode(text, add_special_tokens=False).ids:
                raise AssertionError(f"cached encoding differs on {text!r}")
