"""Where a record came from, and that it says nothing about the machine of whoever recorded it."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pytest_llminfer.baselines.provenance import command_line, provenance, working_commit

HOME = Path("/home/somebody")
PROJECT = HOME / "project"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], ""),
        (["/home/somebody/.venv/bin/pytest", "suites/"], "pytest suites/"),
        (["/usr/lib/python3/site-packages/pytest/__main__.py", "-q"], "pytest -q"),
        (["pytest", "/home/somebody/project/suites/test_a.py::test_b[nf4]"], "pytest 'suites/test_a.py::test_b[nf4]'"),
        (["pytest", "--rootdir=/home/somebody/project"], "pytest --rootdir=."),
        (["pytest", "--rootdir=/home/somebody"], "pytest '--rootdir=~'"),
        (["pytest", "--engine=vllm@/home/somebody/v/bin/python"], "pytest '--engine=vllm@~/v/bin/python'"),
        (["pytest", "--engine=transformers:/data/secret/llama"], "pytest --engine=transformers:.../llama"),
        (["pytest", "-c/etc/somewhere/pytest.ini"], "pytest -c.../pytest.ini"),
        (["pytest", "/home/somebodyelse/x"], "pytest .../x"),
        (["pytest", "--a=/x/y,/z/w"], "pytest --a=.../y,.../w"),
        (["pytest", "file:///home/somebody/project/x", "file:///mnt/x"], "pytest x .../x"),
        (["pytest", "http://host:8000/v1", "../x", "a/b", "./c"], "pytest http://host:8000/v1 ../x a/b ./c"),
        (["pytest", "--url=https://me:pass@host/v1"], "pytest '--url=https://***@host/v1'"),
        (["pytest", "--api-key=sk-1", "--token", "abc", "x"], "pytest '--api-key=***' --token '***' x"),
        (
            ["pytest", '--engine-args={"hf_token": "hf \\"x", "seed": 3}'],
            """pytest '--engine-args={"hf_token": "***", "seed": 3}'""",
        ),
        (["pytest", '--engine-args={"max_num_batched_tokens": 3}'], """pytest '--engine-args={"max_num_batched_tokens": 3}'"""),
        (["pytest", "--max-tokens=5", "-k", "key and token"], "pytest --max-tokens=5 -k 'key and token'"),
    ],
)
def test_the_command_line_names_no_place_and_no_secret(argv: list[str], line: str) -> None:
    assert command_line(argv, directory=PROJECT, home=HOME) == line


def test_a_root_directory_as_home_or_working_directory_hides_nothing_away() -> None:
    assert command_line(["pytest", "/home/me/x"], directory=Path("/"), home=Path("/")) == "pytest .../x"


def test_a_provenance_is_complete() -> None:
    east = datetime(2026, 1, 2, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    found = provenance(n=3, hardware="h", versions={"torch": "2"}, commit="abc", argv=["pytest"], now=east)
    assert found == {
        "commit": "abc",
        "date": "2026-01-01T23:30:00Z",
        "command": "pytest",
        "n": 3,
        "hardware": "h",
        "versions": {"torch": "2"},
    }


def test_a_provenance_of_this_process(tmp_path: Path) -> None:
    found = provenance(n=1, hardware="h", versions={}, directory=tmp_path)
    assert found["commit"] == "unknown"
    assert str(Path.home()) not in found["command"]
    assert found["date"].endswith("Z")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    directory = tmp_path / "repository"
    (directory / "baselines").mkdir(parents=True)
    for name in ("code.py", "baselines/a.json"):
        (directory / name).write_text("1")
    git(directory, "init", "-q")
    git(directory, "add", ".")
    git(directory, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "first")
    return directory


def git(directory: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_clean_tree(repository: Path) -> None:
    (repository / "untracked").write_text("")
    assert working_commit(repository) == git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("inside", [".", "baselines"])
def test_a_modified_tree_is_dirty(repository: Path, inside: str) -> None:
    (repository / "code.py").write_text("2")
    head = git(repository, "rev-parse", "HEAD")
    assert working_commit(repository / inside, baselines=repository / "baselines") == f"{head}+dirty"


@pytest.mark.parametrize("inside", [".", "baselines"])
def test_recorded_baselines_alone_do_not_make_it_dirty(repository: Path, inside: str) -> None:
    (repository / "baselines/a.json").write_text("2")
    head = git(repository, "rev-parse", "HEAD")
    assert working_commit(repository / inside, baselines=repository / "baselines") == head
    assert working_commit(repository, baselines=repository.parent / "elsewhere") == f"{head}+dirty"
    assert working_commit(repository) == f"{head}+dirty"


def test_the_commit_is_unknown_without_a_repository_a_commit_or_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    assert working_commit(tmp_path) == "unknown"
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    assert working_commit(tmp_path / "empty") == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert working_commit(repository) == "unknown"
