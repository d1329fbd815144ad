"""Where the API key is found, and how a .env file is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.worker.backends.openai.keys import find_key, read_env, redact


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("KEY=plain", "plain"),
        ("export KEY = spaced ", "spaced"),
        ("KEY='single # quoted'", "single # quoted"),
        ('KEY="double \\" quoted\\n"', 'double " quoted\n'),
        ("KEY=before # comment", "before"),
        ("KEY=with#hash", "with#hash"),
        ("KEY=", ""),
        ("KEY=a=b=c", "a=b=c"),
        ('KEY="open', "open"),
        ("# KEY=comment\nKEY=after", "after"),
        ("KEY=first\nKEY=last", "last"),
    ],
)
def test_lines_of_a_file(line: str, value: str) -> None:
    assert read_env(line) == {"KEY": value}


@pytest.mark.parametrize("line", ["# KEY=x", "no assignment", "", "2KEY=x", "KE Y=x"])
def test_lines_that_say_nothing(line: str) -> None:
    assert read_env(line) == {}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    def keys(address: str, *, stored: str = "", **environment: str) -> str:
        for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (tmp_path / ".env").write_text(stored)
        return find_key(address, folder=tmp_path)

    return keys


def test_the_environment_comes_before_the_file_and_each_name_has_its_servers(keys: Callable[..., str]) -> None:
    elsewhere, router = "https://api.openai.com/v1", "https://openrouter.ai/api/v1"
    assert keys(elsewhere, stored="OPENAI_API_KEY=filed", OPENAI_API_KEY="set") == "set"
    assert keys(elsewhere, stored="OPENAI_API_KEY=filed") == "filed"
    assert keys(router, OPENAI_API_KEY="one", OPENROUTER_API_KEY="two") == "two"
    assert keys(router, OPENAI_API_KEY="one") == "one"
    with pytest.raises(BadInputError, match=r"api\.openai\.com needs an API key: set OPENAI_API_KEY"):
        keys(elsewhere, OPENROUTER_API_KEY="two")
    with pytest.raises(BadInputError, match="set OPENROUTER_API_KEY"):
        keys(router)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "192.168.1.7", "gpu-3.lan", "notopenrouter.ai"])
def test_a_local_server_decides_whether_it_needs_a_key(keys: Callable[..., str], host: str) -> None:
    assert keys(f"http://{host}:8000/v1") == ""
    assert keys(f"http://{host}:8000/v1", OPENAI_API_KEY="set") == "set"


def test_a_key_with_a_line_break_is_refused_without_being_shown(keys: Callable[..., str]) -> None:
    with pytest.raises(BadInputError, match="OPENAI_API_KEY holds characters") as caught:
        keys("http://localhost/v1", OPENAI_API_KEY="sk-secret\nsk-other")
    assert "secret" not in str(caught.value)


def test_redaction() -> None:
    assert redact("Bearer sk-1 and sk-1", "sk-1", "") == "Bearer *** and ***"
