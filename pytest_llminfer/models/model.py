"""What is served: its files, configuration, tokenizer and chat template, read without any framework."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.datasets.load import SYNTHETIC, load
from pytest_llminfer.datasets.prompts import ZERO_SHOT
from pytest_llminfer.errors import BadInputError
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.spec import REFERENCE_MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jinja2

HERE = Path(__file__).resolve().parent
SHAPES = HERE / "shapes"
_WHOLE_FILE_BYTES = 64 * 2**20
_HEAD_BYTES = 2**20
_METADATA = ("*.json", "*.jinja", "tokenizer*")


class Model:
    """A model by name: ``reference`` (bundled), a folder, the name of a bundled shape, or an id on the Hugging Face hub.

    A bundled shape has a configuration and nothing else, and is served with ``weights=dummy``.
    """

    def __init__(self, name: str, *, weights: str = "real") -> None:
        self.name = name
        self.weights = weights
        self.folder, self.path = _find(name, weights)
        self.config = _read_config(self.folder)

    @property
    def id(self) -> str:
        """How baselines name the model: the folder's name for a local path, the name itself otherwise."""
        name = Path(self.name).resolve().name if Path(self.name).is_dir() else self.name
        return f"{name}-dummy" if self.weights == "dummy" else name

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
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text`` as it stands: special tokens are read where they are written, none is added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` of each text, several times as fast."""
        return [list(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``, without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @cached_property
    def chat_template(self) -> str:
        """The Jinja source of the chat template; empty where the model has none."""
        separate = self.folder / "chat_template.jinja"
        if separate.is_file():
            return separate.read_text()
        template = self._tokenizer_config.get("chat_template") or ""
        if isinstance(template, list):
            template = next((entry["template"] for entry in template if entry["name"] == "default"), "")
        return str(template)

    @cached_property
    def _tokenizer_config(self) -> dict[str, Any]:
        path = self.folder / "tokenizer_config.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    @cached_property
    def _compiled_template(self) -> jinja2.Template:
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError:
            raise BadInputError("chat templates need the package jinja2: pip install 'pytest-llminfer[suites]'") from None
        if not self.chat_template:
            raise BadInputError(f"the model {self.name} has no chat template: use completion prompts")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _raise_from_template
        return environment.from_string(self.chat_template)

    def chat(self, messages: str | Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation up to where the model answers; a string is one user message."""
        return self.encode(self.render_chat(messages))

    def render_chat(self, messages: str | Sequence[dict[str, str]]) -> str:
        """The text of a conversation in the model's chat template, up to where the model answers."""
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        tokens = {name: _token_text(self._tokenizer_config.get(name)) for name in names}
        return str(self._compiled_template.render(messages=conversation, add_generation_prompt=True, **tokens))

    def prompts(self, count: int) -> list[list[int]]:
        """``count`` short prompts of different lengths: bundled questions, or drawn token ids where there is no tokenizer."""
        if not (self.has_tokenizer and self.chat_template):
            return [prompt[: 24 + 7 * number] for number, prompt in enumerate(self.sample_prompts(count, 24 + 7 * count))]
        problems = load(SYNTHETIC).problems[:count]
        return [self.chat(ZERO_SHOT.format(question=problem.question)) for problem in problems]

    def sample_prompts(self, count: int, length: int) -> list[list[int]]:
        """``count`` distinct prompts of ``length`` token ids, drawn evenly from the vocabulary; the same on every machine."""
        vocabulary, state, prompts = int(self.config["vocab_size"]), 1, []
        for _ in range(count):
            ids = []
            for _ in range(length):
                state = (6364136223846793005 * state + 1442695040888963407) % 2**64  # Knuth's MMIX generator
                ids.append((state >> 33) % vocabulary)
            prompts.append(ids)
        return prompts

    @cached_property
    def sha256(self) -> str:
        """A fingerprint of configuration and weights: whole files up to 64 MiB, name, size and first MiB of larger ones."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        if self.weights == "real":
            for path in sorted(self.folder.glob("*.safetensors")):
                size = path.stat().st_size
                digest.update(f"{path.name}:{size}".encode())
                with path.open("rb") as stream:
                    digest.update(stream.read() if size <= _WHOLE_FILE_BYTES else stream.read(_HEAD_BYTES))
        return digest.hexdigest()


def _find(name: str, weights: str) -> tuple[Path, str]:
    """The folder with the metadata, and what the engine is told to load."""
    if name == REFERENCE_MODEL:
        return HERE / REFERENCE_MODEL, str(HERE / REFERENCE_MODEL)
    shapes = sorted(path.name for path in SHAPES.iterdir())
    if name in shapes:
        if weights != "dummy":
            raise BadInputError(
                f"{name} is a bundled shape without weights: add --weights=dummy, or give the path of a model folder"
            )
        return SHAPES / name, str(SHAPES / name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve(), str(folder.resolve())
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise BadInputError(
            f"the model {name!r} is no folder here; give the path of a folder with config.json, "
            f"an id such as Qwen/Qwen2.5-0.5B-Instruct, or a bundled shape ({', '.join(shapes)}) with --weights=dummy"
        )
    return _fetch_metadata(name), name


def _fetch_metadata(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise BadInputError(f"reading {name} from the hub needs huggingface_hub: pip install 'pytest-llminfer[suites]'") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(_METADATA)))
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise BadInputError(f"the model {name!r} is no folder here and cannot be read from the hub: {first}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise BadInputError(f"the model folder {folder} has no readable config.json ({error.strerror})") from error
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON: {error}") from error
    return dict(config)


def _token_text(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token or "")


def _raise_from_template(message: str) -> None:
    raise BadInputError(f"the chat template refuses the conversation: {message}")
