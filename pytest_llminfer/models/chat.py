"""Chat templates, with the tags that transformers adds to Jinja. This module imports jinja2."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pytest_llminfer.errors import BadInputError, RefusedConversationError
from pytest_llminfer.models.chat_forms import TODAY
from pytest_llminfer.models.files import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from jinja2.parser import Parser

WAY_OUT = "fetch the file again, or use completion prompts"


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}``: transformers marks the model's own words with it; the text is that inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as the attribute of an instance

    def parse(self, parser: Parser) -> nodes.Node:
        """Render the block in a new scope, as transformers does, where it is a call."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """A compiled chat template. file: where it stands, for messages.

    Raises:
        BadInputError: Jinja cannot compile it.
    """

    def __init__(self, source: str, *, file: Path) -> None:
        self._file = file
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._compiled = environment.from_string(source)
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f" at line {line}" if line else ""
            raise BadInputError(f"the chat template in {file} does not compile{where} ({first_line(error)}); {WAY_OUT}") from error

    def render(self, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str], *, today: date = TODAY) -> str:
        """The text of a conversation up to where the model answers. tokens: the special ones by name, such as ``bos_token``.

        today: what ``strftime_now`` says, at midnight. Tools and documents are None, as transformers gives them.

        Raises:
            RefusedConversationError: the template refuses the conversation.
            BadInputError: it fails on the conversation.
        """
        try:
            given = {"add_generation_prompt": True, "tools": None, "documents": None, "strftime_now": today.strftime}
            return self._compiled.render(messages=messages, **given, **tokens)
        except BadInputError:
            raise
        except Exception as error:
            raise BadInputError(
                f"the chat template in {self._file} fails ({type(error).__name__}: {first_line(error)}); {WAY_OUT}"
            ) from error


def _refuse(message: str) -> NoReturn:
    raise RefusedConversationError(f"the chat template refuses the conversation: {message}")
