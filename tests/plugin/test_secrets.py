"""Canaries in every place where a secret may be given: no output of a session holds one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from tests.support.engines import openai_backends
from tests.support.openai_server import Fake
from tests.support.paths import SUITES

pytest.importorskip("openai")

fake = openai_backends.fake
KEY, FIELD = "sk-CANARY-of-the-environment-0123456789", "CANARY-of-a-field-0123456789"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.fault(
    "secrets", "canaries in the key, in extra_body, in replies and errors", "in no terminal output, report or baseline"
)
def test_no_output_holds_a_secret(
    fake: Fake,
    pytester: pytest.Pytester,
    run: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fake.key = KEY
    fake.models[0]["note"] = f"you sent Bearer {KEY}"
    sound = fake.answer

    def echo(path: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
        if fails and "chat" in path:
            return 500, {"error": {"message": f"the key {KEY} and {body['user_api_key']} are not known"}}
        status, message = sound(path, body)
        message["choices"][0]["text"] = f"<{KEY}>"
        message["system_fingerprint"] = KEY
        return status, message

    fake.answer = echo
    for name in ("chat", "settings"):
        shutil.copy(SUITES / f"test_{name}.py", pytester.path)
    engine_args = json.dumps({"extra_body": {"user_api_key": FIELD}, "max_retries": 0})
    result = run(
        *("-vv", "--showlocals", "-rA", f"--engine-args={engine_args}", "--update-baselines"),
        *("--junitxml=junit.xml", "--llminfer-report=report"),
        engine=f"openai@{fake.address}",
    )
    assert result.parseoutcomes().get("errors", 0) == int(fails)
    assert any(FIELD in json.dumps(body) for body in fake.bodies)
    assert list(pytester.path.glob("baselines/**/*.json"))
    written = {
        file.name: file.read_bytes().decode(errors="replace")
        for file in pytester.path.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"junit.xml", "results.json"} <= written.keys()
    outputs = {**written, "the terminal": result.stdout.str() + result.stderr.str()}
    assert [(name, canary) for name, text in outputs.items() for canary in (KEY, FIELD) if canary in text] == []
