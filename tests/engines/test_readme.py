"""What the README shows is run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pytest_llminfer.plugin.command_line import OPTIONS, PREFIX
from tests.support.paths import REPOSITORY, SUITES

OF_OTHERS = {
    *("--pyargs", "--junitxml", "--benchmark-compare-fail", "--interleave-rounds"),  # pytest, pytest-benchmark, asv
    *("--enable-trace-replay", "--kv-cache-memory-bytes", "--kl-divergence"),  # vLLM, llama.cpp
}
"""Options of other programs that pages name."""
README = (REPOSITORY / "README.md").read_text()
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))


def test_the_test_of_ones_own_model_has_ten_lines_and_passes(pytester: pytest.Pytester) -> None:
    code, of_the_cache = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    assert len(of_the_cache.strip().splitlines()) == 3
    pytester.makepyfile(test_my_model=code, test_my_cache=of_the_cache)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    result = pytester.runpytest_subprocess(f"--engine=transformers,transformers@{sys.executable}")
    result.assert_outcomes(passed=4)


def test_every_option_is_in_the_readme() -> None:
    assert len(OPTIONS) > 20
    assert [option.flag for option in OPTIONS if f"`{option.flag}" not in README] == []
    assert f"`{PREFIX}" in README


def test_every_suite_is_in_the_readme() -> None:
    suites = sorted(path.name for path in (SUITES).glob("test_*.py"))
    assert len(suites) > 10
    assert [name for name in suites if f"| `{name}` |" not in README] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_option_and_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    sources = [path for name in ("pytest_llminfer", "tools", "benchmarks") for path in (REPOSITORY / name).rglob("*.py")]
    known = "".join([*(path.read_text() for path in sources), *(f'"{option.canonical}"' for option in OPTIONS)])
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - OF_OTHERS
    assert [flag for flag in sorted(flags) if f'"{flag}"' not in known] == []
    files = re.findall(r"(?<![\w/])((?:tools|tests|suites|benchmarks|docs|pytest_llminfer)/[\w./]*\.(?:py|sh|md|toml))", text)
    assert [name for name in sorted(set(files)) if not (REPOSITORY / name).exists()] == []
