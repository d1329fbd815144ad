"""An engine of another distribution, found through its entry point: suites run on it, and this package is not touched."""

from __future__ import annotations

import json
import shutil
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.distributions.install import install_echo
from tests.support.paths import SUITES

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install echo beside pytest, with what its entry point names."""

    def install(**options: str) -> None:
        monkeypatch.setenv("PYTHONPATH", str(install_echo(pytester.path / "site", **options)), prepend=":")

    return install


@pytest.fixture
def echo(installed: Callable[..., None], run: Run, pytester: pytest.Pytester) -> Run:
    """Run these suites on it."""
    installed()

    def run_suites(*arguments: str, engine: str = "echo", suites: tuple[str, ...] = ("layout",)) -> pytest.RunResult:
        for name in suites:
            shutil.copy(SUITES / f"test_{name}.py", pytester.path)
        return run("-rs", *arguments, engine=engine)

    return run_suites


def test_suites_run_on_it_and_what_it_does_not_say_is_a_skip_with_its_reason(echo: Run) -> None:
    suites = ("layout", "memory", "parallelism", "settings", "shutdown", "tokens")
    result = echo("-k", "not accuracy", suites=suites)
    result.assert_outcomes(passed=5, skipped=6, deselected=1)
    skipped = [line for line in result.outlines if line.startswith("SKIPPED")]
    (unsaid,) = [line for line in skipped if "no baseline for " not in line]
    assert unsaid.endswith(
        "what tables of rotary positions take in echo is not known here; its profile has to say it: 'rotary_bytes' of echo"
    )
    # What it cannot answer is not collected: tokens need probabilities.
    assert "test_tokens" not in result.stdout.str()


def test_a_layout_is_judged_recorded_and_compared(echo: Run) -> None:
    echo("--update-baselines=new").assert_outcomes(passed=1, skipped=1)
    echo().assert_outcomes(passed=2)
    faulty = echo(f"--engine-args={json.dumps({'lose': 'model.norm.weight'})}")
    faulty.assert_outcomes(failed=2)
    faulty.stdout.fnmatch_lines(["*model.norm.weight*missing*"])


def test_its_backend_runs_in_an_interpreter_that_has_nothing_but_python(echo: Run, pytester: pytest.Pytester) -> None:
    """No PYTHONPATH reaches another interpreter: the backend is imported from the file that the pytest process knows."""
    venv.create(pytester.path / "bare", symlinks=True)
    pytester.makepyfile(
        test_place="""
        def test_generates(engine):
            (answer,) = engine.generate([[5, 6, 7]], max_tokens=5)
            assert answer.token_ids == (5, 6, 7, 5, 6)
            assert not engine.settings()["resolved"]["beside_on_path"]
        """
    )
    result = echo(engine=f"echo@{pytester.path / 'bare' / 'bin' / 'python'}")
    result.assert_outcomes(passed=2, skipped=1)


def test_two_processes_of_xdist_run_it_too(echo: Run) -> None:
    echo("-n2").assert_outcomes(passed=1, skipped=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"point": "llminfer_ecco.profile:PROFILE"}, "cannot be loaded: ModuleNotFoundError: No module named 'llminfer_ecco'"),
        ({"point": "llminfer_echo.profile:PROFIL"}, "cannot be loaded: AttributeError: *PROFIL*"),
        ({"point": "llminfer_echo.backend:EchoBackend"}, "is a type, and must be a pytest_llminfer.engines.profiles.base.Profile"),
    ],
)
def test_a_broken_entry_point_is_one_line(
    installed: Callable[..., None], run: Run, pytester: pytest.Pytester, options: dict[str, str], message: str
) -> None:
    installed(**options)
    pytester.makepyfile("def test_one(engine): pass")
    result = run(engine="echo")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    where = (
        f"ERROR: --engine: the engine echo of llminfer-echo 1.0 (entry point pytest_llminfer.engines: echo = {options['point']})"
    )
    (line,) = [line for line in result.errlines if line]
    assert line.startswith(where)
    result.stderr.fnmatch_lines([f"*{message}"])
    # Whoever uses another engine is not disturbed.
    run("-q").assert_outcomes(passed=1)


def test_an_entry_point_and_its_profile_have_one_name(installed: Callable[..., None], run: Run, pytester: pytest.Pytester) -> None:
    installed(engine="parrot")
    pytester.makepyfile("def test_one(engine): pass")
    result = run(engine="parrot")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*is the profile of 'echo'; both must have one name"])


def test_a_backend_that_is_not_there_is_one_line(installed: Callable[..., None], run: Run, pytester: pytest.Pytester) -> None:
    installed()
    profile = pytester.path / "site" / "llminfer_echo" / "profile.py"
    profile.write_text(profile.read_text().replace("llminfer_echo.backend:", "llminfer_gone.backend:"))
    pytester.makepyfile("def test_one(engine): pass")
    result = run(engine="echo")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["BadInputError: the backend llminfer_gone.backend:EchoBackend of the engine echo cannot be found: no module *"]
    )
    assert "Traceback" not in result.stdout.str()


def test_it_is_among_the_names_of_a_misspelt_one(echo: Run) -> None:
    result = echo(engine="ecko")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown engine 'ecko'; valid: llamacpp, *, vllm, echo. Did you mean 'echo'?"])


def test_a_session_without_an_engine_looks_for_none(installed: Callable[..., None], pytester: pytest.Pytester) -> None:
    installed(point="llminfer_ecco.profile:PROFILE")
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    pytester.makepyfile(
        """
        import sys

        def test_alone():
            loaded = sorted(name for name in sys.modules if name.startswith("pytest_llminfer.engines.profiles."))
            assert loaded == []
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    assert not (Path("site") / "llminfer_echo" / "__pycache__").exists()
