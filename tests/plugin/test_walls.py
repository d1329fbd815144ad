"""What may import what: proved at the end of real sessions, and by reading every import statement."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pytest_llminfer

PACKAGE = Path(pytest_llminfer.__file__).parent
FRAMEWORKS = {"torch", "transformers", "vllm", "sglang", "llama_cpp", "bitsandbytes", "accelerate"}
CONFTEST = """
    import json, pathlib, sys, pytest

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(config):
        pathlib.Path("modules.json").write_text(json.dumps(sorted(sys.modules)))
"""


def modules(pytester: pytest.Pytester) -> set[str]:
    return {name.partition(".")[0] for name in json.loads((pytester.path / "modules.json").read_text())}


def test_an_engine_free_session_imports_neither_frameworks_nor_numpy(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("def test_alone(): pass")
    run("-p", "no:hypothesispytest").assert_outcomes(passed=1)
    assert not modules(pytester) & (FRAMEWORKS | {"numpy"})


def test_a_session_with_an_engine_imports_no_framework(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        """
        def test_all(engine, model):
            engine.generate(model.prompts(2), max_tokens=2, logprobs=2)
            engine.layout(); engine.memory(); engine.calibrate(); engine.kv_cache([5, 6], extend=2)
        """
    )
    run().assert_outcomes(passed=1)
    assert not modules(pytester) & FRAMEWORKS


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever the statement stands, except for type checking only."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(folder: str = "") -> list[Path]:
    return [path for path in (PACKAGE / folder).rglob("*.py") if "suites" not in path.relative_to(PACKAGE).parts]


def test_only_backends_import_a_framework() -> None:
    for path in sources():
        if "backends" not in path.parts and "probes" not in path.parts:
            assert not {name.partition(".")[0] for name in imports(path)} & FRAMEWORKS, path


def test_a_worker_imports_only_spec_errors_and_itself() -> None:
    allowed = ("pytest_llminfer.spec", "pytest_llminfer.errors", "pytest_llminfer.checkpoints", "pytest_llminfer.worker")
    for path in sources("worker"):
        ours = {name for name in imports(path) if name.startswith("pytest_llminfer")}
        # The package by itself is its version; how it is loaded where it is not installed.
        assert all(name.startswith(allowed) or name == "pytest_llminfer" for name in ours), (path, ours)


def test_checks_never_import_engines() -> None:
    for path in [*(PACKAGE / "families").rglob("check.py"), *sources("stats")]:
        assert not any(name.startswith("pytest_llminfer.engines") for name in imports(path)), path


def test_nothing_below_the_glue_imports_pytest() -> None:
    for path in sources():
        if path.relative_to(PACKAGE).parts[0] != "plugin":
            assert "pytest" not in imports(path), path


def test_a_worker_does_not_see_the_site_packages_of_the_plugin() -> None:
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0]);"
        "loop = sys.modules['pytest_llminfer.worker.loop'] = type(sys)('stub'); loop.main = lambda: None;"
        "runpy.run_path(sys.argv[0], run_name='__main__'); print([entry for entry in sys.path if 'site-packages' in entry])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(PACKAGE / "worker")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_file_is_longer_than_two_concepts() -> None:
    for path in sources():
        assert len(path.read_text().splitlines()) <= 300, path
