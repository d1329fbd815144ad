"""What ``engine_args`` may hold for a server."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

APIS = ("completions", "chat")
NAMES = ("api", "concurrency", "extra_body", "extra_headers", "max_retries", "model", "timeout")
_SECRET_NAME = re.compile(r"[\w-]*(?:auth|authorization|key|password|secret|token)", re.IGNORECASE)
_SHORTEST_SECRET = 8
_SECRET_WORDS = ("auth", "cookie", "key", "password", "secret", "token")


@dataclass(frozen=True, slots=True)
class Arguments:
    """``engine_args`` of a server, read and checked.

    Attributes:
        model: Name of the model on the server; empty for the only one there.
        api: ``completions`` or ``chat``; empty to find out which one answers.
        concurrency: Requests under way at once, at least 1.
        max_retries: Retries of one request, with back-off, on 429, 5xx and lost connections; 0 for none.
        timeout: Seconds that one request may take.
        extra_body: Fields sent in the body of every request, such as OpenRouter's ``{"provider": {...}}``; null removes a field.
        extra_headers: Headers sent with every request; none that may hold a secret.
    """

    model: str
    api: str
    concurrency: int
    max_retries: int
    timeout: float
    extra_body: dict[str, Any]
    extra_headers: dict[str, str] = field(repr=False)

    @classmethod
    def read(cls, engine_args: Mapping[str, Any]) -> Arguments:
        """Refuse names that nothing would read, and values of another kind.

        Raises:
            BadInputError: an unknown name, a value of another kind, or a header that may hold a secret.
        """
        for name in engine_args:
            if name not in NAMES:
                raise BadInputError(
                    f"unknown engine argument {name!r} for openai; valid: {', '.join(NAMES)}.{closest(name, NAMES)}"
                )
        api = _of(engine_args, "api", str, "")
        if api and api not in APIS:
            raise BadInputError(f"unknown api {api!r}; valid: {', '.join(APIS)}.{closest(api, APIS)}")
        headers = _of(engine_args, "extra_headers", dict, {})
        for name, value in headers.items():
            if any(word in name.lower() for word in _SECRET_WORDS):
                raise BadInputError(
                    f"extra_headers holds {name!r}: arguments are recorded with baselines, so give the key as OPENAI_API_KEY in "
                    "the environment or in .env"
                )
            if not isinstance(value, str):
                raise BadInputError(f"extra_headers must hold text, and {name!r} is a {type(value).__name__}")
        return cls(
            model=_of(engine_args, "model", str, ""),
            api=api,
            concurrency=_count(engine_args, "concurrency", 16, least=1),
            max_retries=_count(engine_args, "max_retries", 5, least=0),
            timeout=_seconds(engine_args, "timeout", 600.0),
            extra_body=_of(engine_args, "extra_body", dict, {}),
            extra_headers=headers,
        )


def secrets_in(value: Any, name: str = "") -> list[str]:
    """Every text of at least 8 characters that stands under the name of a secret, such as ``user_api_key``, at any depth."""
    if isinstance(value, dict):
        return [found for inner, each in value.items() for found in secrets_in(each, str(inner))]
    if isinstance(value, list):
        return [found for each in value for found in secrets_in(each, name)]
    is_secret = isinstance(value, str) and len(value) >= _SHORTEST_SECRET and _SECRET_NAME.fullmatch(name)
    return [value] if is_secret else []


def closest(name: str, choices: Any) -> str:
    """A hint at the most alike of ``choices``, or nothing."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _of(engine_args: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = engine_args.get(name, default)
    if not isinstance(value, kind):
        raise BadInputError(f"{name} must be {'text' if kind is str else 'an object'}, not a {type(value).__name__}")
    return value


def _count(engine_args: Mapping[str, Any], name: str, default: int, *, least: int) -> int:
    value = engine_args.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise BadInputError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


def _seconds(engine_args: Mapping[str, Any], name: str, default: float) -> float:
    value = engine_args.get(name, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise BadInputError(f"{name} must be a number of seconds above 0, not {value!r}")
    return float(value)
