"""Bad input gets one clear line that names the thing and the way out, at setup, without a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from pytest_llminfer.models.files import HERE
from tests.support.paths import SUITES

TEST = "def test_it(engine): engine.generate([[5, 6]], max_tokens=1)"
REFERENCE = HERE / "reference"


def refused(result: pytest.RunResult, message: str) -> None:
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.fault("inputs", "a model that is not there", "one line")
def test_a_model_path_that_does_not_exist(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(TEST)
    refused(run("--model=./no/such/model", *mode), "BadInputError: the model './no/such/model' is no folder here; give *")


@pytest.mark.parametrize("engine", ["simulated", "transformers"])
@pytest.mark.fault("inputs", "a safetensors file was cut", "one line")
def test_a_truncated_safetensors_file(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], engine: str) -> None:
    pytester.makepyfile(TEST)
    model = pytester.path / "model"
    shutil.copytree(REFERENCE, model)
    weights = model / "model.safetensors"
    content = weights.read_bytes()[:100_000]
    weights.write_bytes(content)
    refused(
        run("--model=./model", engine=engine),
        "BadInputError: */model.safetensors is truncated: 100000 bytes of 7348816; fetch it again",
    )
    assert weights.read_bytes() == content


@pytest.mark.fault("inputs", "a safetensors file is something else", "one line")
def test_safetensors_that_is_something_else(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TEST)
    model = pytester.path / "model"
    shutil.copytree(REFERENCE, model)
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    refused(run("--model=./model"), "BadInputError: */model.safetensors is no intact safetensors file (*); fetch it again")


@pytest.mark.fault("inputs", "a model without safetensors, pickles included", "one line; nothing is unpickled")
def test_a_model_without_weights(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TEST)
    model = pytester.path / "model"
    shutil.copytree(REFERENCE, model)
    (model / "model.safetensors").unlink()
    refused(
        run("--model=./model"),
        "BadInputError: */model has no [*].safetensors weights; fetch them, or use weights=dummy for random ones",
    )


PROMPTS = """
import pytest

@pytest.fixture
def prompts(model): return model.{call}

def test_it(engine, prompts): pass
"""


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", '{"version": "1.0", "mod', "*tokenizer.json is no intact tokenizer (*); fetch the file again, *"),
        ("tokenizer.json", "version https://git-lfs", "*tokenizer.json is no intact tokenizer (*); fetch the file again, *"),
        ("tokenizer_config.json", "{", "*tokenizer_config.json is not JSON (*); fetch the file again"),
        ("tokenizer_config.json", "[]", "*tokenizer_config.json holds a list instead of a JSON object; *"),
        ("chat_template.jinja", "{% for %}", "the chat template in *chat_template.jinja does not compile at line 1 (*); *"),
        ("chat_template.jinja", "{% audio %}", "the chat template in *chat_template.jinja does not compile*'audio'*; *"),
        ("chat_template.jinja", "{{ 1 + 'a' }}", "the chat template in *chat_template.jinja fails (TypeError: *); fetch *"),
    ],
)
@pytest.mark.fault("inputs", "tokenizer or template are damaged", "one line")
def test_a_damaged_file_of_the_tokenizer(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], file: str, content: str, message: str
) -> None:
    pytester.makepyfile(PROMPTS.format(call="prompts(1)"))
    model = pytester.path / "model"
    shutil.copytree(REFERENCE, model)
    (model / file).write_text(content)
    result = run("--model=./model")
    refused(result, f"BadInputError: {message}")
    assert "Error" not in result.stdout.str().partition("BadInputError: ")[0]


@pytest.mark.fault("inputs", "a configuration without its vocabulary", "one line")
def test_a_configuration_without_the_size_of_the_vocabulary(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(PROMPTS.replace("engine, ", "").format(call="sample_prompts(1, 8)"))
    model = pytester.path / "model"
    shutil.copytree(REFERENCE, model)
    config = json.loads((model / "config.json").read_text())
    del config["vocab_size"]
    (model / "config.json").write_text(json.dumps(config))
    refused(
        run("--model=./model"), "BadInputError: *config.json has no vocab_size as a positive whole number, *: add it, or give *"
    )


@pytest.mark.fault("inputs", "an engine argument with a slip", "one line with the closest one")
def test_an_engine_argument_that_does_not_exist(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TEST)
    refused(run('--engine-args={"falt": "crash"}'), "BadInputError: *falt*")
    refused(run('--engine-args={"fault": "crahs"}'), "BadInputError: *crahs*crash*")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "How many?", "answer": "Many."}, "DatasetError: *rows.jsonl, line 2: no '#### <number>' in 'answer'*; *"),
        ({"question": "How many?"}, "DatasetError: *rows.jsonl, line 2: no text in 'answer'; *"),
    ],
)
@pytest.mark.fault("inputs", "a dataset with a broken row", "one line with its number")
def test_a_dataset_row_without_an_answer(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], row: dict[str, Any], message: str
) -> None:
    shutil.copy(SUITES / "test_accuracy.py", pytester.path)
    good = {"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"}
    (pytester.path / "rows.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    refused(run("--dataset=rows.jsonl", "-k", "dropped"), message)


@pytest.mark.fault("inputs", "a dataset that is not there", "one line")
def test_a_dataset_that_does_not_exist(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    shutil.copy(SUITES / "test_accuracy.py", pytester.path)
    result = run("--dataset=gsm9k", "-k", "dropped")
    refused(result, "DatasetError: no dataset 'gsm9k'; valid: synthetic, openai/gsm8k, or the path of *")


def test_a_model_that_cannot_be_asked_questions_is_asked_none_and_the_session_says_why(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    shutil.copy(SUITES / "test_accuracy.py", pytester.path)
    model = pytester.path / "model"
    shutil.copytree(REFERENCE, model)
    (model / "tokenizer.json").unlink()
    result = run("--model=./model")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["llminfer: no test applies to a cell of this session: *has_tokenizer*"])


def test_a_probe_that_the_worker_cannot_import(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(
        """
        def test_local(engine):
            def inner(model): return 1
            engine.run(inner)

        def test_missing(engine):
            engine.run("nowhere.py::probe")

        def raises(model):
            return 1 / 0

        def test_raises(engine):
            engine.run(raises)
        """
    )
    result = run()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            "*BadInputError: the probe *inner' must be a function at the top level of its file*",
            "*BadInputError: a probe is named *",
            "*EngineError: *ZeroDivisionError*",
        ]
    )


def test_gpus_is_one_number(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TEST)
    result = run("--gpus=1,2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --gpus takes one number, of all GPUs to use; for several sizes say --dp=1,2 or --tp=1,2"])
