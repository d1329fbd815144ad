"""The API key: where it is found, and how it is kept out of everything that is written."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

OPENAI, OPENROUTER = "OPENAI_API_KEY", "OPENROUTER_API_KEY"
HIDDEN = "***"
_ROUTERS = ("openrouter.ai",)
_HOSTED = (*_ROUTERS, "api.openai.com")
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*$")
_ESCAPES = {"\\n": "\n", "\\t": "\t", '\\"': '"', "\\\\": "\\"}


def find_key(address: str, *, folder: Path) -> str:
    """The key for a server: from the environment, then from ``folder/.env``; empty where none is there or needed.

    OPENROUTER_API_KEY comes first for addresses of openrouter.ai, and is sent to no other server.

    Raises:
        BadInputError: there is no key, and the server is known to require one.
    """
    host = urlsplit(address).hostname or ""
    router, hosted = (any(host == name or host.endswith(f".{name}") for name in names) for names in (_ROUTERS, _HOSTED))
    names = (OPENROUTER, OPENAI) if router else (OPENAI,)
    file = folder / ".env"
    stored = read_env(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else {}
    for name in names:
        if key := (os.environ.get(name) or stored.get(name, "")).strip():
            if not key.isascii() or not key.isprintable() or " " in key:
                raise BadInputError(
                    f"{name} holds characters that no API key has; look for a line break or a quote that is too much"
                )
            return key
    if not hosted:
        return ""
    raise BadInputError(f"{host} needs an API key: set {names[0]} in the environment, or write {names[0]}=… into {file}")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_env(text: str) -> dict[str, str]:
    """The values of a ``.env`` file: KEY=VALUE a line, with ``export``, quotes and comments."""
    found = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and not line.lstrip().startswith("#"):
            found[match[1]] = _value(match[2])
    return found


def _value(text: str) -> str:
    quote = text[:1]
    if quote in ("'", '"'):
        end = re.search(rf"(?<!\\){quote}", text[1:])
        inner = text[1 : end.start() + 1] if end else text[1:]
        return inner if quote == "'" else re.sub(r'\\[nt"\\]', lambda found: _ESCAPES[found[0]], inner)
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip()


def redact(text: str, *secrets: str) -> str:
    """``text`` without the secrets, wherever a server or a library may have repeated them."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, HIDDEN)
    return text
