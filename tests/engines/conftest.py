"""The interpreters of real engines, and suites in sessions of their own.

A test that needs an interpreter fails where it cannot be made; it is never skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.support.engines import environments
from tests.support.paths import FAULTS, SUITES

FAULTY = """
    import pytest

    @pytest.fixture(scope="session")
    def llminfer_engine(llminfer_engine):
        llminfer_engine.prepare("{faults}::{fault}")
        return llminfer_engine
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each() -> Iterator[None]:
    """More OpenMP and ggml threads than cores spin, and tests run beside each other on every core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The path of an interpreter that has vLLM for CPUs."""
    return environments.vllm()


@pytest.fixture(scope="session")
def llamacpp_python() -> str:
    """The path of an interpreter that has llama-cpp-python with its server, and gguf."""
    return environments.llamacpp()


@pytest.fixture(scope="session")
def sglang_python() -> str:
    """The path of an interpreter that has SGLang as it runs on a CPU."""
    return environments.sglang()


@pytest.fixture
def run_suites(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Run suites by name, in a folder of their own; their engine may have one of the faults of ``live_model.py``."""
    # pytest-benchmark switches itself off where it sees a worker of pytest-xdist, which may be what runs this test.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")

    def run(*names: str, arguments: tuple[str, ...], fault: str = "") -> pytest.RunResult:
        for name in names:
            shutil.copy(SUITES / f"test_{name}.py", pytester.path)
        (pytester.path / "conftest.py").unlink(missing_ok=True)
        if fault:
            pytester.makeconftest(FAULTY.format(faults=FAULTS / "live_model.py", fault=fault))
        return pytester.runpytest_subprocess("-v", *arguments)

    return run
