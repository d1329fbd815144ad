"""Constraints of the user that leave pip or uv without a solution are named, with the setting that they come from."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from pytest_llminfer.engines.environments import cache, interpreter
from pytest_llminfer.engines.environments.installer import Installer
from pytest_llminfer.errors import EngineStartError
from tests.support import tiny_environments
from tests.support.tiny_wheels import wheel

index = tiny_environments.index
SECRET = "hunter2"  # noqa: S105 - nobody's


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One empty environment with pip for every installation here: none of them succeeds."""
    folder = tmp_path_factory.mktemp("environment") / "made"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def installer(index: Path, environment: Path, tmp_path: Path) -> Iterator[Installer]:
    """The real pip, which installs from ``index``: whole asks for part 2 or newer, other for an older one."""
    for version in ("1.0", "2.0", "3.0"):
        wheel(index, "part", version)
    wheel(index, "whole", "1.0", requires=["part>=2"])
    wheel(index, "other", "1.0", requires=["part<2"])
    log = tmp_path / "install.log"
    with log.open("ab") as lock:
        yield Installer("", environment, cache.python_of(environment), log, lock, "whole==1.0")


@pytest.fixture
def fails(installer: Installer) -> Callable[..., tuple[str, str]]:
    """Install, and give the first line of the error up to the name of the log, and everything that the user may read."""

    def install(*arguments: str) -> tuple[str, str]:
        with pytest.raises(EngineStartError, match="cannot make the environment for whole") as caught:
            installer.install(*arguments)
        first = str(caught.value).splitlines()[0]
        return first.partition(" The whole log: ")[0], str(caught.value) + installer.log.read_text()

    return install


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where pip looks for its files; the configuration of all users but for /etc/pip.conf is left out."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "home" / "none"))
    monkeypatch.delenv("PIP_CONFIG_FILE")
    return tmp_path / "home"


class NothingThere(http.server.BaseHTTPRequestHandler):
    """A package index without packages."""

    def do_GET(self) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def private_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL, with a password, of an index that pip asks beside the folder of wheels."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("NO_PROXY", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NothingThere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://somebody:{SECRET}@127.0.0.1:{server.server_port}/simple"
        server.shutdown()


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_no_test_here_sees_the_configuration_of_the_machine() -> None:
    listing = [sys.executable, "-m", "pip", "config", "list"]
    assert subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split() == [
        f":env:.config-file='{os.devnull}'"
    ]


def test_a_constraint_of_a_pip_conf_is_named_and_can_be_lifted(
    fails: Callable[..., tuple[str, str]],
    installer: Installer,
    user_home: Path,
    private_index: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = write(user_home / "held.txt", "# what this machine holds", "harmless<=5", "part <= 1.5  # not the new one")
    lines = ["[global]", f"index-url = {private_index}", "[install]", f"constraint = {held}"]
    configuration = write(user_home / ".config" / "pip" / "pip.conf", *lines)
    first, everything = fails("whole==1.0")
    assert first == (
        "cannot make the environment for whole==1.0: pip failed: no versions fit together under the constraint part <= 1.5 "
        f"from {held} line 3, which install.constraint of {configuration} names. "
        "Loosen it there, or set PIP_CONSTRAINT=/dev/null to do without."
    )
    assert SECRET not in everything
    assert "somebody:****@127.0.0.1" in everything, "pip was told of that index"
    monkeypatch.setenv("PIP_CONSTRAINT", os.devnull)
    installer.install("--dry-run", "whole==1.0")


def test_a_file_that_pip_config_file_names_is_told_before_that_of_the_user(
    fails: Callable[..., tuple[str, str]], user_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(user_home / ".config" / "pip" / "pip.conf", "[install]", f"constraint = {write(user_home / 'a.txt', 'part<1.1')}")
    # Several files over several lines, one of which names the next.
    inner = write(user_home / "inner.txt", "part \\", '  < 1.2; python_version > "3"', 'part<1; python_version < "3"')
    outer, empty = write(user_home / "outer.txt", "-c inner.txt"), write(user_home / "empty.txt")
    configuration = write(user_home / "own.conf", "[install]", "constraint =", f"    {empty}", f"    {outer}")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    first, _ = fails("whole==1.0")
    assert f'under the constraint part   < 1.2; python_version > "3" from {inner} line 1, which install.constraint of' in first
    assert f"{configuration} names." in first
    assert "a.txt" not in first


def test_a_constraint_of_an_environment_variable_is_named(
    fails: Callable[..., tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose, strict = write(tmp_path / "loose.txt", "part<2.5"), write(tmp_path / "strict.txt", "harmless==1", "Part==1.0")
    monkeypatch.setenv("PIP_CONSTRAINT", f"{loose} {strict}")
    first, _ = fails("whole==1.0")
    assert f"under the constraint Part==1.0 from {strict} line 2, which PIP_CONSTRAINT names." in first
    assert "part<2.5" not in first, "it leaves one that would do"
    monkeypatch.delenv("PIP_CONSTRAINT")
    monkeypatch.setenv("LLMINFER_CONSTRAINTS", str(strict))
    first, _ = fails("-c", str(strict), "whole==1.0")
    assert f"under the constraint Part==1.0 from {strict} line 2, which LLMINFER_CONSTRAINTS names." in first
    assert first.endswith("Loosen it there, or unset LLMINFER_CONSTRAINTS.")


def test_a_requirement_that_the_user_adds_to_every_installation_is_named(
    fails: Callable[..., tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "always.txt", "part<2")
    monkeypatch.setenv("PIP_REQUIREMENT", str(file))
    first, _ = fails("whole==1.0")
    assert f"under the requirement part<2 from {file} line 1, which PIP_REQUIREMENT names." in first
    assert first.endswith("set PIP_REQUIREMENT=/dev/null to do without.")


@pytest.mark.parametrize("constraint", ["", "part<=5", "whole<=1.0"])
def test_what_does_not_fit_without_a_constraint_is_not_blamed_on_one(
    fails: Callable[..., tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constraint: str
) -> None:
    """whole and other ask for different versions of part: no constraint takes part, or one that forbids nothing they want."""
    monkeypatch.setenv("PIP_CONSTRAINT", str(write(tmp_path / "mine.txt", constraint)))
    first, everything = fails("whole==1.0", "other")
    assert "ResolutionImpossible" in everything
    assert first.endswith("pip failed: what is required does not fit together; the log says which requirements conflict.")


def test_what_the_installation_holds_itself_is_not_blamed_on_the_user(
    fails: Callable[..., tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONSTRAINT", str(write(tmp_path / "mine.txt", "part<=5")))
    held = write(tmp_path / "constraints.txt", "part==1.0")
    first, _ = fails("-c", str(held), "whole==1.0")
    assert "what is required does not fit together" in first


def test_a_version_that_does_not_exist_is_not_blamed_on_a_constraint_that_allows_it(
    fails: Callable[..., tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip still reports a conflict with the constraint."""
    monkeypatch.setenv("PIP_CONSTRAINT", str(write(tmp_path / "mine.txt", "part<=10")))
    first, everything = fails("part==9.9")
    assert "The user requested (constraint) part<=10" in everything
    assert "pip failed: there is no such version for this Python and platform" in first
    assert "index versions part`" in first


def test_a_constraint_on_torch_does_not_keep_the_index_of_pytorch_from_being_asked(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(index, "torch", "2.0")
    wheel(index, "vllm", "9.1", requires=["torch==2.0+cu130"])
    monkeypatch.setenv("PIP_CONSTRAINT", str(write(tmp_path / "mine.txt", "torch<=3")))
    with pytest.raises(EngineStartError, match="no such version") as caught:
        interpreter("vllm==9.1", without_gpu=True)
    log = Path(str(caught.value).partition("The whole log: ")[2].partition(". ")[0])
    assert " --extra-index-url https://download.pytorch.org/whl/cu130 torch==2.0+cu130\n" in log.read_text()
