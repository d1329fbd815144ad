"""Death, hang and out-of-memory of an engine are failed tests that say what happened; the run goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = """
    def test_first(engine):
        engine.generate([[5, 6, 7]], max_tokens=2)

    def test_second(engine):
        assert engine.memory().weights_bytes > 0
"""


def failing(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], fault: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(TESTS)
    result = run(f'--engine-args={{"fault": "{fault}"}}', *arguments)
    assert "Traceback" not in result.stdout.str() or fault == "out_of_memory"
    return result


@pytest.mark.fault("processes", "the engine crashes", "one test fails, the next one has a fresh worker")
def test_a_crash_fails_the_test_and_the_next_one_gets_a_fresh_worker(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    result = failing(pytester, run, "crash", *mode)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["*EngineDiedError: the engine's process was killed by SIGSEGV (a fault in native code) during 'generate'*"]
    )


@pytest.mark.fault("processes", "the engine exits", "one test fails with the status")
def test_an_exit_fails_the_test_with_its_status(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    result = failing(pytester, run, "exit", *mode)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*EngineDiedError: the engine's process exited with status * during 'generate'*"])


@pytest.mark.fault("processes", "the engine hangs", "the test fails at --llminfer-timeout")
def test_a_hang_ends_at_the_time_limit(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    result = failing(pytester, run, "hang", "--llminfer-timeout=3", *mode)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["*EngineHungError: the engine said nothing for 3 s during 'generate' and was killed; *--llminfer-timeout*"]
    )


@pytest.mark.fault("processes", "the engine runs out of memory", "named as such")
def test_out_of_memory_is_named(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]) -> None:
    result = failing(pytester, run, "out_of_memory", *mode)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*OutOfMemoryError: *"])


@pytest.mark.fault("processes", "the engine dies every time", "given up after three times")
def test_an_engine_that_always_dies_is_given_up(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("".join(f"def test_{n}(engine):\n    engine.generate([[5]], max_tokens=1)\n\n" for n in range(5)))
    result = run('--engine-args={"fault": "crash"}')
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines(["*has died or failed to load 3 times and is not started again; last: *"])


def wrapper(folder: Path, name: str, lines: str) -> Path:
    """An interpreter that is a shell script; the lines come before the real one is started."""
    script = folder / name
    script.write_text(f'#!/bin/sh\n{lines}\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("second_start", "what"), [("exit 7", "EngineDiedError*exited with status 7"), ("sleep 600", "EngineHungError*said nothing")]
)
@pytest.mark.fault("processes", "an engine cannot be loaded again", "given up")
def test_loads_that_fail_after_a_death_are_given_up(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], second_start: str, what: str
) -> None:
    pytester.makepyfile("".join(f"def test_{n}(engine):\n    engine.generate([[5]], max_tokens=1)\n\n" for n in range(5)))
    script = wrapper(pytester.path, "once", f"echo start >> starts\ntest $(wc -l < starts) -gt 1 && {second_start}")
    result = run('--engine-args={"fault": "crash"}', "--llminfer-timeout=5", engine=f"simulated@{script}")
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines(
        [
            "*EngineDiedError*SIGSEGV*during 'generate'*",
            f"*{what}*during 'load'*",
            f"*{what}*during 'load'*",
            "*EngineStartError*has died or failed to load 3 times and is not started again; last: *during 'load'*",
        ]
    )
    assert (pytester.path / "starts").read_text().count("start") == 3
    assert "write to closed file" not in result.stdout.str()


def test_a_load_that_fails_in_restart_is_told_and_tried_again(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(
        """
        import pytest
        from pytest_llminfer.errors import EngineDiedError

        def test_restart(engine):
            with pytest.raises(EngineDiedError, match="status 7 during 'load'"):
                engine.restart()
            assert engine.generate([[5]], max_tokens=1)
            assert engine.loads == 2
            engine.close()
            with pytest.raises(Exception, match="was closed and cannot answer 'memory'"):
                engine.memory()
            engine.restart()
            assert engine.memory().weights_bytes > 0
        """
    )
    script = wrapper(pytester.path, "twice", "echo start >> starts\ntest $(wc -l < starts) -eq 2 && exit 7")
    run(engine=f"simulated@{script}").assert_outcomes(passed=1)


@pytest.mark.fault("processes", "an answer is missing", "an error, never a shorter comparison")
def test_an_answer_that_is_missing_is_an_error(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(
        """
        def test_first(engine):
            engine.generate([[5, 6], [7, 8], [9]], max_tokens=2)

        def test_second(engine):
            assert engine.memory().weights_bytes > 0
        """
    )
    result = run('--engine-args={"fault": "drop_answer"}', *mode)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*EngineError: simulated: asked 3 prompts, 2 answers came back*"])


@pytest.mark.fault("processes", "a test gives what cannot be sent", "named; the worker lives")
def test_what_cannot_be_sent_is_named_and_the_worker_lives(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(
        """
        from pathlib import Path

        def probe(model, x):
            return 1

        def test_path(engine):
            engine.run(probe, x=[1, Path()])

        def test_next(engine):
            assert engine.memory().weights_bytes > 0
            assert engine.loads == 1
        """
    )
    result = run()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*BadInputError: 'run' cannot be sent to the worker: arguments?'x'??1? is a PosixPath; *"])


@pytest.mark.fault("processes", "the interpreter writes to standard output", "named with what it wrote")
def test_an_interpreter_that_prints_is_named(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TESTS)
    script = wrapper(pytester.path, "chatty", "echo 'activating the environment'")
    result = run(engine=f"simulated@{script}")
    result.assert_outcomes(errors=2)
    expected = "standard output before the worker took over: b'activating the environment"
    result.stdout.fnmatch_lines([f"*EngineStartError: the interpreter wrote something else than messages to its {expected}*"])


@pytest.mark.fault("processes", "the interpreter is too old", "one line")
def test_a_python_that_is_too_old_is_named(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TESTS)
    code = "import runpy, sys; sys.version_info = (3, 9, 1); runpy.run_path(sys.argv[1], run_name='__main__')"
    script = pytester.path / "old"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    script.chmod(0o755)
    result = run(engine=f"simulated@{script}")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*exited with status 3 during 'load'. Its last words:", "*a worker needs Python 3.10 or newer; *"])


def test_the_next_cell_runs_after_one_that_cannot_load(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(TESTS)
    result = run(*mode, engine=f"simulated@{pytester.path}/no/python,simulated")
    result.assert_outcomes(errors=2, passed=2)
    result.stdout.fnmatch_lines(["*EngineStartError: cannot start the interpreter */no/python: No such file or directory; *"])


@pytest.mark.fault("processes", "the interpreter lacks the engine", "one line")
def test_an_interpreter_that_lacks_the_engine_is_named(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TESTS)
    bare = pytester.path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    result = run(engine=f"transformers@{bare}")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*EngineStartError: *"])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.fault("processes", "something that is no Python is given", "one line")
def test_something_that_is_no_python_is_named(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TESTS)
    result = run(engine="simulated@/bin/true")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*EngineDiedError: the engine's process exited with status 0 during 'load'*"])


def test_the_log_of_a_dead_worker_is_quoted(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TESTS)
    script = pytester.path / "sick"
    script.write_text("#!/bin/sh\necho 'libcuda.so is missing' >&2\nexit 3\n")
    script.chmod(0o755)
    result = run(engine=f"simulated@{script}")
    result.stdout.fnmatch_lines(["*exited with status 3 during 'load'. Its last words:", "*libcuda.so is missing"])
    assert Path(script).exists()
