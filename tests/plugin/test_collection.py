"""What is collected: a test that no cell of the session can run is none, and a user who asks for it by name is told why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

SOME = """
import pytest

PARAMETERS = [
    pytest.param("everywhere"),
    pytest.param("elsewhere", marks=pytest.mark.llminfer_only(engine=("vllm", "sglang"))),
    pytest.param("quantized", marks=pytest.mark.llminfer_only(quantized=True)),
]

@pytest.mark.parametrize("which", PARAMETERS)
def test_parameters(engine_spec, which): assert which == "everywhere" or engine_spec.quantization == "nf4"

@pytest.mark.llminfer_only(parallel=True)
def test_parallel(engine_spec): pass

@pytest.mark.llminfer_needs("kv_cache")
def test_cache(engine_spec): pass

@pytest.mark.llminfer_needs("kv_pool")
def test_pool(engine_spec): pass

@pytest.mark.llminfer_needs(option="--kv-variants")
def test_variants(engine_spec): pass

class TestInAClass:
    @pytest.mark.llminfer_only(over_http=True)
    def test_served(self, engine_spec): pass

def test_without_an_engine(): pass
"""
NONE = """
import pytest
pytestmark = pytest.mark.llminfer_only(over_http=True)

def test_one(engine_spec): pass
def test_two(engine_spec): pass
def test_on_disk(checkpoint): pass
"""


def names(result: pytest.RunResult) -> list[str]:
    """The tests that passed, in the order of their names."""
    return sorted(line.split(" PASSED")[0].split("::")[-1] for line in result.outlines if " PASSED" in line and "::" in line)


def test_what_a_cell_can_never_run_is_no_test_of_it(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(SOME)
    result = run("-v", "--quantization=none,nf4")
    result.assert_outcomes(passed=6)
    assert names(result) == [
        "test_cache[simulated-nf4]",
        "test_cache[simulated]",
        "test_parameters[simulated-everywhere]",
        "test_parameters[simulated-nf4-everywhere]",
        "test_parameters[simulated-nf4-quantized]",
        "test_without_an_engine",
    ]
    result.stdout.fnmatch_lines(["*collected 6 items"])
    assert result.ret == 0


def test_every_process_of_xdist_collects_the_same(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(SOME)
    result = run("-v", "-n2", "--quantization=none,nf4")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["2 workers [[]6 items[]]"])


def test_an_option_or_its_ini_file_brings_its_tests(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(SOME)
    assert "test_variants[simulated]" in names(run("-v", "--kv-variants"))
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\nllminfer_kv_variants = true\n")
    assert "test_variants[simulated]" in names(run("-v"))


def test_a_session_in_which_nothing_applies_says_what_is_needed(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(NONE)
    result = run(*mode)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    line = "llminfer: no test applies to a cell of this session: 2 need over_http=True (--serve, *), 1 needs --checkpoint=PATH"
    result.stdout.fnmatch_lines([line])
    assert result.stdout.str().count("llminfer: no test applies") == 1


NAMED = {
    "test_parallel": "parallel=True (--gpus=2, or --tp=2)",
    "test_pool": "an engine that answers 'kv_pool' (llamacpp, sglang, vllm)",
    "test_parameters[simulated-elsewhere]": "engine=vllm or sglang; quantized=True (--quantization=int8)",
    "TestInAClass::test_served": "over_http=True (--serve, or --engine=openai@http://host:port/v1)",
    "test_variants": "--kv-variants",
}


OF_ONE_PARAMETER = "engine=vllm or sglang"


def test_a_test_that_is_named_and_does_not_apply_says_what_it_needs(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    file = pytester.makepyfile(SOME).name
    result = run(*(f"{file}::{name}" for name in NAMED))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = [line.partition("::")[2] for line in result.errlines if line.startswith("ERROR: ")]
    if pytest.version_tuple >= (9,):
        # From then on pytest names the test alone, whatever its parameters.
        wanted = {name.partition("[")[0]: needs for name, needs in NAMED.items()}
    else:
        wanted = {name: OF_ONE_PARAMETER if "[" in name else needs for name, needs in NAMED.items()}
    assert told == [f"{name} applies to no cell of this session: it needs {needs}" for name, needs in wanted.items()]
    assert "not found" not in result.stderr.str()


def test_a_named_test_is_explained_under_xdist_too_which_hides_what_pytest_says(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    result = run("-n2", f"{pytester.makepyfile(SOME).name}::test_variants")
    result.stdout.fnmatch_lines(["*::test_variants applies to no cell of this session: it needs --kv-variants"])


def test_what_does_not_exist_is_told_by_pytest(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    result = run(f"{pytester.makepyfile(SOME).name}::test_pools")
    result.stderr.fnmatch_lines(["ERROR: not found: *::test_pools", "(no match in any of *)"])


UNREADABLE = {
    "llminfer_only(engin='x')": "*llminfer_only: unknown field 'engin'; valid: engine, *, parallel, *, has_sliding_window",
    "llminfer_needs('kv_pol')": "*llminfer_needs: no engine answers 'kv_pol'; valid: *kv_pool*",
    "llminfer_needs(option='--kv-variant')": "*llminfer_needs: there is no option --kv-variant",
}


def test_a_marker_that_cannot_be_read_is_an_error_of_its_file(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    for number, marker in enumerate(UNREADABLE):
        pytester.path.joinpath(f"test_{number}.py").write_text(
            f"import pytest\n@pytest.mark.{marker}\ndef test_it(engine_spec): pass\n"
        )
    pytester.makepyfile(test_other="def test_other(): pass")
    result = run("--continue-on-collection-errors")
    result.assert_outcomes(errors=len(UNREADABLE), passed=1)
    result.stdout.fnmatch_lines_random(list(UNREADABLE.values()))


OF_MODELS = """
import pytest
CASES = [pytest.param(fact, marks=pytest.mark.llminfer_only(**{f"has_{fact}": True})) for fact in
         ("tokenizer", "chat_template", "sliding_window")]

@pytest.mark.parametrize("fact", CASES)
def test_fact(model, fact): pass
"""


def test_facts_about_a_model_are_read_from_its_files(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(OF_MODELS)
    assert names(run("-v")) == ["test_fact[simulated-chat_template]", "test_fact[simulated-tokenizer]"]
    # A bundled shape has a configuration and nothing else.
    result = run("-v", "--model=llama-3-8b", "--weights=dummy")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_model_that_is_fetched_or_a_projects_own_is_not_judged_by_its_name(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(OF_MODELS)
    assert run("--collect-only", "-q", "--model=some/model").stdout.str().count("test_fact[") == 3
    pytester.makeconftest("import pytest\n@pytest.fixture(scope='session')\ndef llminfer_model(llminfer_engine_spec): return None")
    run().assert_outcomes(passed=3)


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="[tool.pytest] is read by pytest 9 and newer")
def test_an_empty_parameter_set_is_an_error_in_this_repository(pytester: pytest.Pytester) -> None:
    file = pytester.makepyfile("import pytest\n@pytest.mark.parametrize('x', [])\ndef test_it(x): pass")
    result = pytester.runpytest_subprocess("-c", str(REPOSITORY / "pyproject.toml"), "-p", "no:cacheprovider", str(file))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*Empty parameter set in 'test_it'*"])


@pytest.mark.parametrize("arguments", [(), ("--serve",)])
def test_a_live_engine_answers_what_was_said_of_it_before_it_started(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], arguments: tuple[str, ...]
) -> None:
    pytester.makepyfile(
        """
        from pytest_llminfer.engines.capabilities import possible_capabilities

        def test_engine(engine):
            answered, possible = set(engine.info.capabilities), possible_capabilities(engine.spec)
            # A server shows what it offers when it is asked: this one takes token ids, and scores none. No accelerator is here.
            assert answered == possible - ({"generate:messages", "score_top"} if engine.spec.serve else {"trace"})
        """
    )
    run(*arguments).assert_outcomes(passed=1)
