"""Renders chat templates in a process of its own, whose time and memory are limited: a template is a program of a stranger.

Run by its path with one JSON object a line on standard input, ``{"source", "given"}``, and one a line back: ``{"text"}``, or
``{"kind", "message", "line"}`` of what went wrong. It needs jinja2 and the standard library, and imports nothing beside it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.parser import Parser

SECONDS = 10
"""Of processor time that one conversation may take; those of real models take milliseconds."""
MEMORY_BYTES = 1 << 30
MISSING, COMPILE, REFUSED, FAILS = "missing", "compile", "refused", "fails"


class _RefusedError(Exception):
    """The template called ``raise_exception``."""


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}…{% endgeneration %}``: transformers marks the model's own words with it; the text is that inside."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as the attribute of an instance

        def parse(self, parser: Parser) -> nodes.Node:
            """Render the block in a new scope, as transformers does, where it is a call."""
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The text, or what went wrong."""
    try:
        from jinja2 import TemplateError
    except ModuleNotFoundError:
        return {"kind": MISSING, "message": ""}
    try:
        template = _compiled(request["source"])
    except TemplateError as error:
        return {"kind": COMPILE, "message": str(error), "line": getattr(error, "lineno", None)}
    given = request["given"]
    today = date.fromisoformat(given.pop("today"))
    try:
        text = template.render(**given, add_generation_prompt=True, tools=None, documents=None, strftime_now=today.strftime)
    except _RefusedError as error:
        return {"kind": REFUSED, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a template does is told
        return {"kind": FAILS, "message": str(error), "name": type(error).__name__}
    return {"text": text}


def _limit() -> None:
    """Once more the time of one conversation. The kernel ends a process that goes beyond, whatever it does."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def serve() -> None:
    """Answer until the end of standard input."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        _limit()
        try:
            reply = json.dumps(answer(json.loads(line)))
        except MemoryError:
            reply = json.dumps({"kind": FAILS, "message": "", "name": MemoryError.__name__})
        sys.stdout.write(f"{reply}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
