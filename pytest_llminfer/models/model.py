"""What is served: its files, configuration, tokenizer and chat template, read without any framework."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.gguf_model import config_from_gguf, read_gguf
from pytest_llminfer.datasets.load import SYNTHETIC, load
from pytest_llminfer.datasets.prompts import ZERO_SHOT
from pytest_llminfer.errors import BadInputError
from pytest_llminfer.models.chat_forms import TODAY
from pytest_llminfer.models.files import find, fingerprint, first_line, read_object, snapshot_of
from pytest_llminfer.models.shape import ModelShape

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from pytest_llminfer.models.chat import ChatTemplate


class Model:
    """A model by name: ``reference`` (bundled), a folder, the name of a bundled shape, or an id on the Hugging Face hub.

    A bundled shape has a configuration and nothing else, and is served with ``weights=dummy``. called: how baselines name it,
    instead of by its folder or repository: two folders may have one name.
    """

    def __init__(self, name: str, *, weights: str = "real", called: str = "") -> None:
        self.name, self.called = name, called
        self.weights = weights
        self.folder, self.path = find(name, weights)
        self._gguf = Path(self.path).name if self.path.endswith(".gguf") else ""
        self.config = config_from_gguf(read_gguf(Path(self.path))) if self._gguf else read_object(self.folder / "config.json")

    @property
    def id(self) -> str:
        """How baselines name the model: as it was called; a repository of the hub, fetched or not; a folder by its own name."""
        local = self._gguf or Path(self.name).is_dir()
        name = Path(self.path if self._gguf else self.name).resolve().name if local else self.name
        name = self.called or (snapshot_of(self.folder)[0] if local else "") or name
        return f"{name}-dummy" if self.weights == "dummy" else name

    @property
    def revision(self) -> str:
        """The commit on the hub that the files are of; empty for others."""
        return snapshot_of(self.folder)[1]

    @cached_property
    def shape(self) -> ModelShape:
        """Shape arithmetic from the configuration."""
        return ModelShape.from_config(self.config)

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be turned into token ids here."""
        return (self.folder / "tokenizer.json").is_file()

    @cached_property
    def _tokenizer(self) -> Any:
        if not self.has_tokenizer:
            raise BadInputError(f"the model {self.name} has no tokenizer.json: give token ids instead of text")
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError:
            raise BadInputError("reading a tokenizer needs the package tokenizers: pip install 'pytest-llminfer[suites]'") from None
        path = self.folder / "tokenizer.json"
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise BadInputError(
                f"{path} is no intact tokenizer ({first_line(error)}); fetch the file again, or use a newer package tokenizers"
            ) from error

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text`` as it stands: special tokens are read where they are written, none is added.

        Raises:
            BadInputError: the model has no intact tokenizer.json, or the package tokenizers is missing.
        """
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str], *, start: bool = False) -> list[list[int]]:
        """:meth:`encode` of each text, several times as fast; ``start``: with the tokens that the tokenizer puts around a text."""
        return [list(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=start)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``, without special tokens.

        Raises:
            BadInputError: the model has no intact tokenizer.json, or the package tokenizers is missing.
        """
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @property
    def special_tokens(self) -> dict[int, str]:
        """What the tokenizer calls its special tokens, by id."""
        return {number: token.content for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    @cached_property
    def chat_template(self) -> str:
        """The Jinja source of the chat template; empty where the model has none.

        Raises:
            BadInputError: its file cannot be read, or holds something else.
        """
        if self._template_file.name == "tokenizer_config.json":
            return _default_template(self._tokenizer_config.get("chat_template"), self._template_file)
        try:
            return self._template_file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise BadInputError(f"{self._template_file} cannot be read ({first_line(error)}); fetch the file again") from error

    @property
    def _template_file(self) -> Path:
        separate = self.folder / "chat_template.jinja"
        return separate if separate.is_file() else self.folder / "tokenizer_config.json"

    @cached_property
    def _tokenizer_config(self) -> dict[str, Any]:
        path = self.folder / "tokenizer_config.json"
        return read_object(path) if path.is_file() else {}

    @cached_property
    def _compiled_template(self) -> ChatTemplate:
        from pytest_llminfer.models.chat import ChatTemplate

        if not self.chat_template:
            raise BadInputError(f"the model {self.name} has no chat template: use completion prompts")
        return ChatTemplate(self.chat_template, file=self._template_file)

    def chat(self, messages: str | Sequence[dict[str, str]], *, today: date = TODAY) -> list[int]:
        """Token ids of a conversation up to where the model answers; a string is one user message.

        Raises:
            BadInputError: the model has no chat template or tokenizer, or a package to read them is missing.
            RefusedConversationError: the template does not take this conversation.
        """
        return self.encode(self.render_chat(messages, today=today))

    def render_chat(self, messages: str | Sequence[dict[str, str]], *, today: date = TODAY) -> str:
        """The text of a conversation in the model's chat template, up to where the model answers; the date is ``today``.

        Raises:
            BadInputError: the model has no chat template, or jinja2 is missing.
            RefusedConversationError: the template does not take this conversation.
        """
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return self._compiled_template.render(conversation, self.template_tokens, today=today)

    @property
    def template_tokens(self) -> dict[str, str]:
        """Special tokens by the names that chat templates have for them, such as ``bos_token``; empty where there is none."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return {name: _token_text(self._tokenizer_config.get(name)) for name in names}

    def prompts(self, count: int) -> list[list[int]]:
        """``count`` short prompts of different lengths: bundled questions, or drawn token ids where there is no tokenizer."""
        if not (self.has_tokenizer and self.chat_template):
            return [prompt[: 24 + 7 * number] for number, prompt in enumerate(self.sample_prompts(count, 24 + 7 * count))]
        problems = load(SYNTHETIC).problems[:count]
        return [self.chat(ZERO_SHOT.format(question=problem.question)) for problem in problems]

    def sample_prompts(self, count: int, length: int) -> list[list[int]]:
        """``count`` distinct prompts of ``length`` token ids, drawn evenly from the vocabulary; the same on every machine.

        Raises:
            BadInputError: the configuration has no vocab_size.
        """
        vocabulary, state, prompts = self._vocabulary, 1, []
        for _ in range(count):
            ids = []
            for _ in range(length):
                state = (6364136223846793005 * state + 1442695040888963407) % 2**64  # Knuth's MMIX generator
                ids.append((state >> 33) % vocabulary)
            prompts.append(ids)
        return prompts

    @property
    def _vocabulary(self) -> int:
        """Token ids that the embedding has; a model of text and images keeps its language model's sizes apart."""
        nested = self.config.get("text_config")
        holders = (self.config, nested if isinstance(nested, dict) else {})
        size = next((holder["vocab_size"] for holder in holders if holder.get("vocab_size") is not None), None)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise BadInputError(
                f"{self.folder / 'config.json'} has no vocab_size as a positive whole number, "
                f"neither at the top nor in text_config (got {size!r}): add it, or give prompts instead of drawn ones"
            )
        return size

    @cached_property
    def sha256(self) -> str:
        """A fingerprint of configuration and weights; :func:`fingerprint` says which part of a large file counts."""
        from_hub = not self._gguf and self.path != str(self.folder)
        return fingerprint(self.config, self.folder, weights=self.weights, from_hub=from_hub, only=self._gguf)


def _default_template(template: object, file: Path) -> str:
    """One template as text, or the one named ``default`` of a list."""
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if template is not None and not isinstance(template, str):
        raise BadInputError(f"chat_template in {file} is a {type(template).__name__} instead of text; fetch the file again")
    return template or ""


def _token_text(token: object) -> str:
    return str((token.get("content") if isinstance(token, dict) else token) or "")
