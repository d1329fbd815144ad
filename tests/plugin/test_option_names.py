"""Short names of options give way to a project's own; the names with the prefix are always ours."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pytest_llminfer.plugin.command_line import GROUPS, OPTIONS

Session = Callable[..., pytest.RunResult]
OWN = """
    def pytest_addoption(parser):
        parser.addoption("--model", default="bert")
        parser.addoption("--dataset", choices=("train", "test"), default="train")
        parser.addoption("--full", action="store_true")
        parser.addoption("--serve", type=int, default=0)
"""
SEES_ITS_OWN = """
    def test_its_own(pytestconfig):
        own = [pytestconfig.getoption(name) for name in ("--model", "--dataset", "--full", "--serve")]
        assert own == {own}
"""
TELLS = """
    from pytest_llminfer.plugin import options

    def test_tells(pytestconfig):
        settings = options.resolve(pytestconfig)
        print("\\nmodel", settings.matrix.model, "dataset", settings.accuracy.dataset, "full", settings.accuracy.full)
        print("serve", settings.matrix.serve, "engine", settings.matrix.engine, "update", repr(settings.baselines.update))
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> Session:
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    return lambda *arguments: pytester.runpytest_subprocess("-s", *arguments)


def test_a_project_keeps_options_that_have_our_short_names(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(OWN)
    pytester.makepyfile(SEES_ITS_OWN.format(own=["bert", "train", False, 0]))
    session().assert_outcomes(passed=1)
    pytester.makepyfile(SEES_ITS_OWN.format(own=["gpt", "test", True, 3]))
    session("--model=gpt", "--dataset", "test", "--full", "--serve=3").assert_outcomes(passed=1)


def test_ours_then_have_the_prefix_alone(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(OWN)
    pytester.makepyfile(TELLS)
    result = session("--model=gpt", "--llminfer-model=./mine", "--llminfer-dataset=rows.jsonl", "--llminfer-serve", "--engine=vllm")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["model ('./mine',) dataset rows.jsonl full False", "serve True engine ('vllm',) update ''"])


def test_a_value_that_the_project_refuses_is_its_own_error(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(OWN)
    result = session("--dataset=openai/gsm8k")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*argument --dataset: invalid choice*"])


def test_an_option_of_another_plugin_or_of_a_folder_is_kept(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makepyfile(theirs='def pytest_addoption(parser): parser.addoption("--engine", default="innodb")')
    below = pytester.mkpydir("below")
    (below / "conftest.py").write_text('def pytest_addoption(parser): parser.addoption("--tp", default="later")')
    (below / "test_below.py").write_text('def test_it(pytestconfig): assert pytestconfig.getoption("--engine") == "innodb"')
    session("-p", "theirs", "--llminfer-strict").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model=./served", "--full", "--engine=simulated", "--update-baselines=new"),
        ("--model", "./served", "--full", "--engine", "simulated", "--update-baselines", "new"),
        (
            "--model=first",
            "--full",
            "--engine=vllm",
            "--model",
            "./served",
            "--llminfer-engine=simulated",
            "--update-baselines=new",
        ),
        ("--llminfer-model=./served", "--llminfer-full", "--llminfer-engine=simulated", "--llminfer-update-baselines=new"),
    ],
)
def test_short_names_are_ours_where_nobody_has_them(
    pytester: pytest.Pytester, session: Session, arguments: tuple[str, ...]
) -> None:
    # A folder that is the value of an option is no folder of tests: its conftest.py is left alone.
    (pytester.mkpydir("served") / "conftest.py").write_text("raise RuntimeError('this is a model')")
    tests = pytester.mkdir("mine")
    (tests / "conftest.py").write_text('def pytest_addoption(parser): parser.addoption("--own", default="mine")')
    (tests / "test_tells.py").write_text("\n".join(line[4:] for line in TELLS.splitlines()).replace("print(", "assert True, ("))
    result = session(*arguments, "mine/test_tells.py")
    result.assert_outcomes(passed=1)


def test_the_settings_that_short_names_give(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makepyfile(TELLS)
    result = session("--model=first", "--model", "second", "--full", "--update-baselines", "--engine=simulated")
    result.stdout.fnmatch_lines(["model ('second',) dataset synthetic full True", "*engine ('simulated',) update 'all'"])


def test_options_reach_the_workers_of_xdist(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(OWN)
    pytester.makepyfile(
        """
        from pytest_llminfer.plugin import options

        def test_it(pytestconfig):
            settings = options.resolve(pytestconfig)
            assert (settings.matrix.engine, settings.accuracy.full) == (("simulated",), True)
            assert (pytestconfig.getoption("--model"), pytestconfig.getoption("--full")) == ("gpt", False)
        """
    )
    session("--engine=simulated", "--llminfer-full", "--model=gpt", "-n2").assert_outcomes(passed=1)


def test_addopts_and_the_environment_may_name_them(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile(TELLS)
    pytester.makeini("[pytest]\naddopts = --engine=simulated --dataset rows.jsonl\nllminfer_serve = true\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--model=mine")
    result = pytester.runpytest_subprocess("-s")
    result.stdout.fnmatch_lines(["model ('mine',) dataset rows.jsonl full False", "serve True engine ('simulated',) update ''"])


def test_part_of_a_name_is_no_name(session: Session) -> None:
    result = session("--engin=vllm")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --engin=vllm*"])


def test_an_error_names_the_option_as_it_was_written(pytester: pytest.Pytester, session: Session) -> None:
    session("--tp=two").stderr.fnmatch_lines(["ERROR: --tp: 'two' is not a whole number from 1 up"])
    session("--llminfer-tp=two").stderr.fnmatch_lines(["ERROR: --llminfer-tp: 'two' is not a whole number from 1 up"])
    pytester.makeini("[pytest]\nllminfer_tp = two\n")
    pytester.runpytest_subprocess().stderr.fnmatch_lines(["ERROR: llminfer_tp: 'two' is not a whole number from 1 up"])


def test_help_shows_every_option_in_a_group_with_an_example(pytester: pytest.Pytester, session: Session) -> None:
    shown = re.sub(r"\s+", " ", session("--help").stdout.str())
    for title, example, _ in GROUPS:
        assert f"{title} ({example}):" in shown
    for option in OPTIONS:
        assert option.canonical in shown
        assert option.flag in shown
    pytester.makeconftest(OWN)
    shown = re.sub(r"\s+", " ", session("--help").stdout.str())
    assert "--llminfer-model=MODEL,… what is served" in shown
    # Python 3.13 writes the placeholder once.
    assert re.search("--llminfer-engine(=NAME,…)?, --engine=NAME,… engines under test", shown)


def test_the_examples_of_the_help_are_read(session: Session) -> None:
    import shlex

    for group in GROUPS:
        command, *arguments = shlex.split(group.example)
        result = session(*[argument for argument in arguments if not argument.startswith("suites/")])
        assert command == "pytest"
        assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED, group.example


HINTS = """
    import pytest
    from pytest_llminfer.errors import UnsupportedError
    from pytest_llminfer.verdict import Outcome, Verdict

    def test_skip():
        raise UnsupportedError("no such model", "use --model=DIR and --engine=vllm, see --model-max")

    def test_fail(llminfer_judge):
        llminfer_judge(Verdict(Outcome.FAIL, "c", "k", (), "t", "s", "d", "set --dataset=rows.jsonl or --llminfer-full", ()))
"""


@pytest.mark.parametrize("own", [True, False])
def test_hints_name_the_option_that_works_here(pytester: pytest.Pytester, session: Session, own: bool) -> None:
    if own:
        pytester.makeconftest(OWN)
    pytester.makepyfile(HINTS)
    result = session("-rs", "--llminfer-engine=simulated")
    result.assert_outcomes(skipped=1, failed=1)
    names = ("--llminfer-model", "--llminfer-dataset") if own else ("--model", "--dataset")
    lines = [
        f"*what to do: set {names[1]}=rows.jsonl or --llminfer-full",
        f"SKIPPED*no such model; use {names[0]}=DIR and --engine=vllm, see --model-max",
    ]
    result.stdout.fnmatch_lines(lines)


def test_a_refused_option_names_the_one_that_works_here(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(OWN.replace("--model", "--engine").replace("--full", "--gpus"))
    for given, line in (
        ("--llminfer-engine=openai", "ERROR: --llminfer-engine=openai needs an address: *"),
        ("--llminfer-gpus=1,2", "ERROR: --llminfer-gpus takes one number, * say --dp=1,2 or --tp=1,2"),
        ("--llminfer-model=", "ERROR: no cell to test: --llminfer-engine, --model, --dtype and --quantization each need *"),
    ):
        result = session(given)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([line])


def test_a_test_that_is_not_collected_names_the_option_that_works_here(pytester: pytest.Pytester, session: Session) -> None:
    pytester.makeconftest(OWN)
    pytester.makepyfile("import pytest\n\n@pytest.mark.llminfer_only(over_http=True)\ndef test_it(engine_spec): pass")
    result = session("--engine=simulated")
    result.stdout.fnmatch_lines(["llminfer: no test applies *1 needs over_http=True (--llminfer-serve, or --engine=openai@*"])
