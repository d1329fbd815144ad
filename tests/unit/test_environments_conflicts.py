"""What pip and uv print about a conflict, as they printed it, and which constraints of the user are blamed for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pytest_llminfer.engines.environments import cache
from pytest_llminfer.engines.environments.conflicts import explain_pip, explain_uv
from pytest_llminfer.engines.environments.installer import Installer
from pytest_llminfer.errors import EngineStartError

CONFLICT = """ERROR: Cannot install whole==1.0 because these package versions have conflicting dependencies.

The conflict is caused by:
    whole 1.0 depends on part{asked}
    The user requested (constraint) part{constraint}

To fix this you could try to:
1. loosen the range of package versions you've specified
"""
LEFT = """ERROR: ...

The conflict is caused by:
    whole 1.0 depends on thing==2
    part 1.0 depends on thing==1

To fix this you could try to:
"""
UV = """Using Python 3.11.7 environment at: v
error: No solution found when resolving dependencies
  cause: {}
         And because you require whole, we can conclude that your requirements are unsatisfiable.
"""


def answers(file: Path | str, versions: str = "3.0, 2.0, 1.0", variable: str = "constraint") -> Callable[..., str]:
    """What pip would answer: one environment variable that names ``file``, and the versions of part."""
    there = f"part (3.0)\nAvailable versions: {versions}\n" if versions else ""
    return lambda arguments: f":env:.{variable}={str(file)!r}\n" if arguments[0] == "config" else there


@pytest.fixture
def blamed(tmp_path: Path) -> Callable[..., str]:
    """Explain a conflict under constraints in a file, each time other ones."""

    def explain(output: str, line: str, versions: str = "3.0, 2.0, 1.0") -> str:
        file = tmp_path / "mine.txt"
        file.write_text(line + "\n")
        return explain_pip(output, ["whole==1.0"], answers(file, versions), {})

    return explain


@pytest.mark.parametrize(
    ("asked", "constraint", "versions", "guilty"),
    [
        (">=2", "<=1", "3.0, 2.0, 1.0", True),
        ("", "<=0.5", "1.0", True),
        (">=9", "<=5", "3.0", False),
        (">=2", "<=5", "3.0, 2.0", False),
        (">=2", "<3", "3.0, 3.0rc1, 1.0", True),
        ("<3", "<=2", "3.0rc1, 2.0", False),
        ("==2.0", "<1", "", True),
        ("==2.0", "<3", "", False),
        (">=2", "<1", "", True),
    ],
)
def test_a_constraint_is_blamed_if_it_forbids_a_version_that_is_there_and_asked_for(
    blamed: Callable[..., str], asked: str, constraint: str, versions: str, guilty: bool
) -> None:
    """Without an answer about the versions, an exact pin says as much; anything else is blamed."""
    reason = blamed(CONFLICT.format(asked=asked, constraint=constraint), f"part{constraint}", versions)
    assert (f"under the constraint part{constraint} from" in reason) is guilty


def test_the_versions_of_one_parent_may_ask_for_different_ones(blamed: Callable[..., str]) -> None:
    output = CONFLICT.format(asked="==3.0\n    whole 0.9 depends on part==2.0", constraint="<=1")
    assert "under the constraint part<=1 from" in blamed(output, "part<=1")
    other = output.replace("whole 0.9", "other 1.0")
    assert "under the constraint" not in blamed(other, "part<=1"), "no version suits both"


def test_a_constraint_on_what_asks_is_blamed_where_it_forbids_other_versions_of_it(blamed: Callable[..., str]) -> None:
    assert "under the constraint part<=1.0 from" in blamed(LEFT, "part<=1.0")
    assert blamed(LEFT, "part<=3") == ""
    assert blamed(LEFT, "elsewhere<=1") == ""


def test_a_conflict_that_nothing_constrains_asks_pip_for_no_versions() -> None:
    asked: list[str] = []

    def record(arguments: Sequence[str]) -> str:
        asked.append(arguments[0])
        return ""

    assert explain_pip(LEFT, ["whole==1.0"], record, {}) == ""
    assert asked == ["config"]
    assert explain_pip("ERROR: No matching distribution found for part", [], lambda _: pytest.fail("asked"), {}) == ""


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("https://me:hunter2@host.example/c.txt?token=hunter2", "https://****@host.example/c.txt?****"),
        ("https://hunter2@host.example/c.txt", "https://****@host.example/c.txt"),
    ],
)
def test_constraints_from_a_url_are_told_without_its_secrets(file: str, shown: str) -> None:
    reason = explain_pip(CONFLICT.format(asked=">=2", constraint="<=1"), ["whole==1.0"], answers(file), {})
    assert f"under the constraint part<=1 from {shown}, which PIP_CONSTRAINT names" in reason
    assert "hunter2" not in reason


def test_a_constraint_that_is_a_url_is_told_without_its_secrets(blamed: Callable[..., str]) -> None:
    reason = blamed(CONFLICT.format(asked=">=2", constraint=""), "part @ https://me:hunter2@host.example/part-1.0-py3-none-any.whl")
    assert "under the constraint part @ https://****@host.example/part-1.0-py3-none-any.whl from" in reason


def test_what_no_file_explains_is_told_all_the_same() -> None:
    reason = explain_pip(CONFLICT.format(asked=">=2", constraint="<=1"), [], answers("/no/file"), {})
    assert "under the constraint part<=1 from /no/file, which PIP_CONSTRAINT names." in reason


def test_many_constraints_are_counted(blamed: Callable[..., str]) -> None:
    lines = "\n".join(f"part<{bound}" for bound in ("1", "1.1", "1.2", "1.3", "1.4"))
    reason = blamed(CONFLICT.format(asked=">=2", constraint="<1"), lines)
    assert "part<1.2 from" in reason
    assert "; and 2 more. Loosen them there, or set PIP_CONSTRAINT=/dev/null to do without" in reason


@pytest.mark.parametrize(
    ("cause", "guilty"),
    [
        ("Because all versions of whole depend on part>=2 and part<=1.0, we can conclude that", True),
        ("Because only part==2.0 is available and all versions of whole depend on part<=1, we can conclude that", True),
        ("Because all versions of whole depend on part>=0.5,<=1, we can conclude that", True),
        ("Because all versions of whole depend on part>2.0+cu130,<2.0+rocm and you require part<=1.0, we can conclude that", True),
        ("Because there is no version of part==2.0+cu130 and you require part==2.0+cu130, we can conclude that", False),
        ("Because part was not found in the provided package locations and all versions of whole depend on part<=1, we can", False),
        ("Because all versions of other depend on a-part<=1 and all versions of whole depend on part>=2, we can", False),
    ],
)
def test_uv_says_itself_which_range_is_in_the_way(tmp_path: Path, cause: str, guilty: bool) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("harmless<1\npart<=1\n")
    reason = explain_uv(UV.format(cause), {"UV_CONSTRAINT": str(file), "UV_NO_CONFIG": "1"})
    assert reason == guilty * (
        f"no versions fit together under the constraint part<=1 from {file} line 2, which UV_CONSTRAINT names. "
        "Loosen it there, or set UV_CONSTRAINT=/dev/null to do without"
    )


def test_constraints_of_the_files_of_uv_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, inner = tmp_path / "project", tmp_path / "project" / "inner"
    inner.mkdir(parents=True)
    (project / "pyproject.toml").write_text('[tool.uv]\nconstraint-dependencies = ["part<=1"]\n')
    (inner / "pyproject.toml").write_text("[project]\n")
    user = tmp_path / "config" / "uv" / "uv.toml"
    user.parent.mkdir(parents=True)
    user.write_text('constraint-dependencies = ["part<=1.0", 3]\n')
    monkeypatch.chdir(inner)
    output = UV.format("Because all versions of whole depend on part>=2 and part<=1, we can conclude that")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_CONFIG_DIRS": str(tmp_path)}
    reason = explain_uv(output, environ)
    assert f"part<=1 from constraint-dependencies in {project / 'pyproject.toml'}; the constraint part<=1.0 from" in reason
    assert f"from constraint-dependencies in {user}. Loosen them there, or set UV_NO_CONFIG=1" in reason
    assert "uv.toml" not in explain_uv(output, {**environ, "UV_CONFIG_FILE": str(project / "pyproject.toml")})
    assert explain_uv(output, {**environ, "UV_NO_CONFIG": "1"}) == ""


def test_the_installer_tells_what_uv_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "uv"
    output = UV.format("Because all versions of whole depend on part>=2 and part<=1, we can conclude that")
    program.write_text(f"#!{sys.executable}\nprint({output!r})\nraise SystemExit(1)\n")
    program.chmod(0o755)
    (tmp_path / "mine.txt").write_text("part<=1\n")
    monkeypatch.setenv("UV_CONSTRAINT", str(tmp_path / "mine.txt"))
    folder = tmp_path / "environment"
    with (tmp_path / "log").open("ab") as lock:
        installer = Installer(str(program), folder, cache.python_of(folder), tmp_path / "log", lock, "whole==1.0")
        with pytest.raises(EngineStartError, match=r"uv failed: no versions fit together under the constraint part<=1 from"):
            installer.install("whole==1.0")
