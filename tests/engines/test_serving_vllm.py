"""vLLM's own server, started once: the serving suite passes against it, and it gives the tokens of transformers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.families.serving.check import check_stop
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.models.model import Model
from pytest_llminfer.numerics.near_ties import measured_noise
from pytest_llminfer.observations.generation import Generation, Sampling
from pytest_llminfer.observations.serving import Reply
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome
from pytest_llminfer.worker.backends.serving.backend import ServedBackend
from tests.support.paths import SUITES

pytest.importorskip("openai")

MODEL = Model("reference")
TOKENS, TOP = 32, 5


@pytest.fixture(scope="module")
def served(vllm_python: str) -> Iterator[ServedBackend]:
    """The server, with what loading it said and how far it came."""
    spec = EngineSpec("vllm", environment=vllm_python, serve=True)
    progress: list[tuple[str, int, int]] = []
    given = {"max_num_seqs": 16, "concurrency": 8}
    backend = ServedBackend(spec, MODEL.path, given, lambda *step: progress.append(step))
    try:
        vars(backend)["info"] = backend.load()
        vars(backend)["progress"] = progress
        yield backend
    finally:
        backend.close()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return MODEL.prompts(8)


@pytest.fixture(scope="module")
def reference(prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> list[Generation]:
    """The answers of transformers at the same dtype."""
    log = tmp_path_factory.mktemp("transformers") / "log"
    engine = Engine(Launch(EngineSpec("transformers"), MODEL, {}, {}, timeout=240, log=log))
    try:
        return engine.generate(prompts, max_tokens=TOKENS, logprobs=TOP)
    finally:
        engine.close()


def test_it_says_what_it_is(served: ServedBackend) -> None:
    info = vars(served)["info"]
    assert (info["dtype"], info["device"], info["device_count"]) == ("bf16", "cpu", 1)
    assert {"generate", "generate:logprobs", "settings", "talk", "serving:stop"} <= served.capabilities
    assert info["versions"]["engine"].startswith("vllm 0.")
    assert ("starting the server", 1, 1) in vars(served)["progress"]
    resolved = served.settings()["resolved"]
    assert (resolved["model"], resolved["max_model_len"], resolved["token_ids"]) == ("reference", 2048, "from the server")


def test_the_key_is_on_no_command_line(served: ServedBackend) -> None:
    lines = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if os.access(file, os.R_OK)]
    assert any(b"--served-model-name" in line for line in lines)
    assert not any(served._key.encode() in line for line in lines)


def judge(candidate: list[Generation], reference: list[Generation]) -> None:
    noise = measured_noise(candidate, reference, dtype="bf16")
    verdict = check_same_greedy_tokens(
        candidate=candidate, reference=reference, dtype="bf16", claim="the server gives transformers' tokens", noise=noise
    )
    assert verdict.outcome is Outcome.PASS, str(verdict)


def test_it_gives_the_tokens_of_transformers(served: ServedBackend, prompts: list[list[int]], reference: list[Generation]) -> None:
    outputs = served.generate(prompts=prompts, sampling=Sampling(TOKENS).to_dict(), logprobs=TOP)["outputs"]
    judge([Generation.from_message(output) for output in outputs], reference)


def test_the_openai_engine_gives_them_too(
    served: ServedBackend, prompts: list[list[int]], reference: list[Generation], tmp_path: Path
) -> None:
    spec = EngineSpec("openai", environment=served._address)
    engine = Engine(Launch(spec, MODEL, {}, {"OPENAI_API_KEY": served._key}, timeout=120, log=tmp_path / "log"))
    try:
        judge(engine.generate(prompts, max_tokens=TOKENS, logprobs=TOP), reference)
        conversation = [{"role": "user", "content": "What is 2 + 3?"}]
        (chat,) = engine.talk([{"endpoint": "chat", "body": {"messages": conversation, "max_tokens": 8}}])
        (completion,) = engine.generate([conversation], max_tokens=8)
    finally:
        engine.close()
    assert tuple(chat["token_ids"]) == completion.token_ids


def test_the_serving_suite_passes_against_it(
    served: ServedBackend, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(SUITES / "test_serving.py", pytester.path)
    monkeypatch.setenv("OPENAI_API_KEY", served._key)
    arguments = (f"--engine=openai@{served._address}", "-v", "-rs", "-p", "no:cacheprovider")
    # Latency is measured and recorded, and not judged: two measurements on a machine that others use may be far apart.
    result = pytester.runpytest_subprocess(*arguments, "--update-baselines")
    # Who asks a server by its address cannot stop it: that is no test here.
    result.assert_outcomes(passed=6, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*baseline recorded: */serving_latency/*"])


def test_it_stops_by_itself_and_leaves_nothing(served: ServedBackend) -> None:
    verdict = check_stop(**served.stop(), again=Reply(200))
    assert verdict.outcome is Outcome.PASS, str(verdict)
