"""Between token ids and text, through the model's own tokenizer, for servers that speak text only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Text:
    """The tokenizer of a model folder; ``present`` is False where there is none, or the package tokenizers is missing."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = None
        file = folder / "tokenizer.json"
        if not file.is_file():
            return
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError:
            return
        self._tokenizer = Tokenizer.from_file(str(file))

    @property
    def present(self) -> bool:
        """Whether text can be turned into token ids."""
        return self._tokenizer is not None

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``, special tokens read where they are written."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, ids: Sequence[int]) -> str:
        """The text that a server will read as these ids.

        Raises:
            BadInputError: there is none, because the text is read as other tokens.
        """
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
        if self.encode(text) != list(ids):
            raise BadInputError(
                "the server takes text only, and the text of this prompt is read as other token ids than those given; "
                "give prompts that a tokenizer made"
            )
        return text
