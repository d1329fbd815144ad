"""The suite on chat templates, for templates that write the date and refuse a system message: by hand and by transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import REFERENCE

REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DATED = (
    "{% for m in messages %}{{ '<start_of_turn>' ~ m.role ~ ' on ' ~ strftime_now('%d %b %Y, %H:%M:%S') ~ m.content ~ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def test_a_template_that_writes_the_date_and_refuses_a_system_message(
    run_suites: Callable[..., pytest.RunResult], tmp_path: Path
) -> None:
    model = tmp_path / "gemma"
    shutil.copytree(REFERENCE, model)
    (model / "chat_template.jinja").write_text(REFUSING + DATED)
    arguments = (f"--model={model}", f"--baselines={tmp_path / 'records'}", "--dtype=fp32")

    result = run_suites("chat", arguments=("--engine=transformers", "--update-baselines=new", *arguments))
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*test_the_engine_reads_the_template_as_it_is*PASSED*"])
    result = run_suites("chat", arguments=("--engine=simulated", *arguments))
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*test_conversations_have_the_recorded_tokens*PASSED*", "simulated-fp32:*pass 310 tokens, 1 refused"]
    )

    (model / "chat_template.jinja").write_text(DATED)
    result = run_suites("chat", arguments=("--engine=simulated", *arguments))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*conversation 1: token * instead of its end at position 0 *"])
