"""An installed plugin disturbs nobody: projects with names of their own, without the extras, on other platforms."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

Session = Callable[..., pytest.RunResult]
OWN_FIXTURES = """
    import pytest

    @pytest.fixture
    def model(): return "bert"

    @pytest.fixture(params=["early", "late"])
    def checkpoint(request): return request.param

    @pytest.fixture
    def engine_spec(): return "v8"

    @pytest.fixture
    def dataset(model): return [model]
"""
ENGINE_TEST = """
    def test_engine(engine, llminfer_model):
        assert engine.generate(llminfer_model.prompts(1), max_tokens=1)
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> Session:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    return pytester.runpytest_subprocess


def test_a_project_keeps_fixtures_that_have_our_short_names(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(OWN_FIXTURES)
    pytester.makepyfile(
        """
        def test_own(model, checkpoint, engine_spec, dataset):
            assert (model, engine_spec, dataset) == ("bert", "v8", ["bert"])
            assert checkpoint in ("early", "late")
        """
    )
    result = session("-v")
    result.assert_outcomes(passed=2)
    assert "llminfer:" not in result.stdout.str()


def test_our_fixtures_do_not_take_a_projects_own_for_ours(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(OWN_FIXTURES)
    pytester.makepyfile(
        """
        def test_engine(engine, model, dataset, llminfer_model, llminfer_dataset, accuracy, judge):
            assert (model, dataset) == ("bert", ["bert"])
            assert engine.generate(llminfer_model.prompts(1), max_tokens=1)
            assert llminfer_dataset.problems
        """
    )
    session("--engine=simulated").assert_outcomes(passed=1)


def test_the_suites_run_in_a_project_with_such_fixtures(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(OWN_FIXTURES + "\n    @pytest.fixture\n    def engine(): return 'v8'\n")
    pytester.makepyfile("def test_own(engine, model): assert (engine, model) == ('v8', 'bert')")
    suites = ("--pyargs", "pytest_llminfer.suites.test_layout", "pytest_llminfer.suites.test_memory")
    result = session("--engine=simulated", *suites, "-k", "weights or parameter")
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes()["passed"] >= 2
    session().assert_outcomes(passed=1)


def test_a_project_may_register_and_use_a_marker_of_our_name(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider --strict-markers\nmarkers = llminfer_only: mine\n")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.llminfer_only("anything", colour="red")
        def test_it(): pass
        """
    )
    session().assert_outcomes(passed=1)


def test_without_pytest_benchmark_only_what_measures_speed_fails(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makepyfile(ENGINE_TEST + "\n    def test_speed(throughput): pass\n    def test_plain(): pass\n")
    result = session("--engine=simulated", "-p", "no:benchmark")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'benchmark' not found*"])


def test_without_the_extras_a_project_runs_and_an_engine_names_what_it_needs(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(
        """
        import sys

        for name in ("jinja2", "tokenizers", "hypothesis", "tqdm", "datasets"):
            sys.modules[name] = None
        """
    )
    pytester.makepyfile("def test_plain(): pass\n\ndef test_engine(engine): assert engine.generate([[5, 6]], max_tokens=1)")
    result = session("--engine=simulated", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["BadInputError: * needs the package tokenizers: pip install 'pytest-llminfer[[]suites[]]'"])


def test_a_session_without_numpy(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest("import sys\nsys.modules['numpy'] = None")
    pytester.makepyfile("def test_plain(): pass")
    session("-p", "no:hypothesispytest").assert_outcomes(passed=1)


@pytest.mark.parametrize("dist", ["load", "worksteal", "loadscope"])
def test_pytest_xdist_distributes_a_projects_tests_as_without_us(pytester: pytest.Pytester, session: Session, dist: str) -> None:
    pytester.makepyfile("import pytest\n\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n): pass")
    expected = {"load": "LoadScheduling", "worksteal": "WorkStealingScheduling", "loadscope": "LoadScopeScheduling"}
    result = session("-n2", f"--dist={dist}", "-v")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([f"scheduling tests via {expected[dist]}"])


def elsewhere(pytester: pytest.Pytester, platform: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A session on a platform that has none of the modules that Linux has: pytest's own parts keep to this one."""
    pytester.makeconftest(f"import sys\nsys.platform = {platform!r}")
    missing = "; ".join(f"sys.modules[{name!r}] = None" for name in ("fcntl", "resource"))
    code = f"import sys; {missing}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *arguments]
    return subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_a_platform_without_engines(pytester: pytest.Pytester, platform: str) -> None:
    pytester.makepyfile(test_plain="def test_plain(tmp_path): assert tmp_path.is_dir()", test_engine=ENGINE_TEST)
    plain = elsewhere(pytester, platform, "test_plain.py")
    assert plain.returncode == 0, plain.stdout + plain.stderr
    message = f"pytest-llminfer starts engines on Linux alone, and this is {platform}; *"
    used = elsewhere(pytester, platform)
    matcher = pytest.LineMatcher(used.stdout.splitlines())
    matcher.fnmatch_lines([f"UnsupportedPlatformError: {message}", "*1 passed, 1 error in *"])
    assert "Traceback" not in used.stdout
    asked = elsewhere(pytester, platform, "--engine=vllm")
    assert asked.returncode == pytest.ExitCode.USAGE_ERROR
    pytest.LineMatcher(asked.stderr.splitlines()).fnmatch_lines([f"ERROR: {message}"])


def test_checkpoints_are_judged_on_every_platform(pytester: pytest.Pytester) -> None:
    from pytest_llminfer.models.files import HERE

    suites = ("--pyargs", "pytest_llminfer.suites.test_checkpoint", f"--llminfer-checkpoint={HERE / 'reference'}")
    judged = elsewhere(pytester, "win32", *suites)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert " passed" in judged.stdout
