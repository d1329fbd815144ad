"""From options to cells: products, narrowing, and nonsense refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

TEST = "def test_cell(engine_spec): pass"


def test_the_product_of_the_lists_in_the_order_given(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TEST)
    result = run("--collect-only", "-q", "--dtype=bf16,fp32", "--quantization=none,nf4", engine="transformers,simulated")
    assert [line.partition("[")[2].rstrip("]") for line in result.outlines if "::" in line] == [
        "transformers-bf16",
        "transformers-bf16-nf4",
        "transformers-fp32",
        "transformers-fp32-nf4",
        "simulated-bf16",
        "simulated-bf16-nf4",
        "simulated-fp32",
        "simulated-fp32-nf4",
    ]


def test_divergence_comes_before_accuracy_in_every_cell_whatever_the_order_of_files(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(
        test_alone="def test_alone(): pass",
        test_accuracy="def test_accuracy(accuracy): pass",
        test_later="def test_predictions(divergence): pass",
    )
    result = run("--collect-only", "-q", "--quantization=none,nf4", "test_accuracy.py", "test_alone.py", "test_later.py")
    assert [line for line in result.outlines if "::" in line] == [
        "test_alone.py::test_alone",
        "test_later.py::test_predictions[simulated]",
        "test_accuracy.py::test_accuracy[simulated]",
        "test_later.py::test_predictions[simulated-nf4]",
        "test_accuracy.py::test_accuracy[simulated-nf4]",
    ]


def test_gpus_alone_means_one_dp_and_tp_side_by_side(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TEST)
    result = run("--collect-only", "-q", "--gpus=2")
    assert [line for line in result.outlines if "::" in line] == [
        f"test_gpus_alone_means_one_dp_and_tp_side_by_side.py::test_cell[{cell}]"
        for cell in ("simulated", "simulated-dp2", "simulated-tp2")
    ]


def test_a_marker_narrows_a_test(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.llminfer_only(dtype="fp32")
        def test_narrow(engine_spec): pass

        @pytest.mark.llminfer_only(engine="transformers")
        def test_none(engine): pass
        """
    )
    result = run("--dtype=auto,fp32", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*::test_narrow[[]simulated-fp32[]] PASSED*"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--engine=transformer",
            "*--engine: unknown engine 'transformer'; valid: *. Did you mean 'transformers'?",
        ),
        ("--engine=vlm==0.33.0", "*--engine: unknown distribution 'vlm'; valid: *. Did you mean 'vllm'?"),
        ("--engine=openai", "*--engine=openai needs an address: openai@http://host:port/v1"),
        ("--engine=vllm@http://host/v1", "*--engine: a server at an address is the engine openai: openai@http://host/v1"),
        (
            "--engine=simulated,openai@http://me:hidden@host/v1",
            "--engine: the address of host holds credentials: set OPENAI_API_KEY instead, or put it into .env",
        ),
        ("--engine=openai@http://host/v1?key=hidden", "--engine: the address of host holds a query, which nothing would send: *"),
        ("--quantization=nf5", "*--quantization: unknown quantization 'nf5'; valid: none, int8, nf4, *. Did you mean 'nf4'?"),
        ("--dtype=float", "*--dtype: unknown dtype 'float'; valid: auto, bf16, fp16, fp32*"),
        ("--kv-dtype=fp7", "*--kv-dtype: unknown kv_dtype 'fp7'*"),
        ("--weights=fake", "*--weights: unknown weights 'fake'; valid: real, dummy*"),
        ("--replication=natve", "*--replication: 'natve' is not one of workers, native"),
        ("--tp=two", "*--tp: 'two' is not a whole number from 1 up"),
        ("--gsm8k-questions=0", "*--gsm8k-questions: '0' is not a whole number from 1 up"),
        ("--gsm8k-runs=16", "*--gsm8k-runs: 16 runs are more than the 15 that a record holds"),
        ("--gsm8k-form=4-shot", "*--gsm8k-form: '4-shot' is not one of zero-shot, 5-shot"),
        ("--engine-args=[]", "*--engine-args: '[[][]]' is not a JSON object*"),
        ("--llminfer-timeout=soon", "*--llminfer-timeout: 'soon' is not a number of seconds above 0"),
        ("--engine=", "*no cell to test*"),
    ],
)
def test_nonsense_is_a_usage_error(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], argument: str, message: str
) -> None:
    pytester.makepyfile(TEST)
    result = run(argument)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert "hidden" not in result.stderr.str() + result.stdout.str()


def test_a_server_that_runs_already_is_not_started(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TEST)
    result = run("--engine=openai@http://host:1/v1", "--serve")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --serve: http://host:1/v1 is a server already; *"])


def test_a_tp_that_does_not_divide_the_gpus_is_a_usage_error(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(TEST)
    result = run("--tp=3", "--gpus=4")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: tp=3 x pp=1 x dp=1 does not divide --gpus=4; products that do: 1, 2, 4"])


def test_ini_options_hold_the_defaults(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nllminfer_engine = simulated\nllminfer_dtype = fp32\n")
    pytester.makepyfile(TEST)
    result = pytester.runpytest_subprocess("-v")
    result.stdout.fnmatch_lines(["llminfer: engine=simulated [[]ini[]]*", "*test_cell[[]simulated-fp32[]] PASSED*"])


@pytest.mark.parametrize("argument", ["--quantization=nf4", "--tp=2", "--dtype=bf16"])
def test_what_the_engine_cannot_do_is_a_skip_with_the_reason(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...], argument: str
) -> None:
    pytester.makepyfile("def test_cell(engine): pass")
    result = run(argument, "-rs", *mode)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*simulated*"])
