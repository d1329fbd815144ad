"""What the README shows is run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_test_of_ones_own_model_has_ten_lines_and_passes(pytester: pytest.Pytester) -> None:
    code, of_the_cache = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    assert len(of_the_cache.strip().splitlines()) == 3
    pytester.makepyfile(test_my_model=code, test_my_cache=of_the_cache)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    result = pytester.runpytest_subprocess(f"--engine=transformers,transformers@{sys.executable}")
    result.assert_outcomes(passed=4)


def test_every_option_is_in_the_readme() -> None:
    from pytest_llminfer.options import MATRIX, OTHER

    for option in (*MATRIX, *OTHER):
        assert f"`{option.flag}`" in README, option.flag
