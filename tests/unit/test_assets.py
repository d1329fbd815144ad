"""The files under assets/: their size, and the file that several checkpoints share."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shared_tensors

from pytest_llminfer.checkpoints.safetensors import read_checkpoint
from tests.support.faults import checkpoints
from tests.support.paths import ASSETS, REFERENCE, REPOSITORY

SHARING = ("awq", "fp8", "gptq", "w4a16", "w8a8")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_together_they_stay_under_30_megabytes() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "assets"]
    names = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0")
    files = {REPOSITORY / name for name in names if name and (REPOSITORY / name).is_symlink() | (REPOSITORY / name).is_file()}
    assert len(files) > 30
    assert sum(file.lstat().st_size for file in files) < 30_000_000


@pytest.mark.parametrize("name", SHARING)
def test_each_links_to_what_the_reference_model_has_too(name: str) -> None:
    link = ASSETS / name / SHARDS[0]
    assert str(link.readlink()) == "../shared.safetensors"
    assert {
        tensor: where.file.name for tensor, where in read_checkpoint(ASSETS / name).items() if ".layers." not in tensor
    } == dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"), SHARDS[0])
    held, original = checkpoints.contents(ASSETS / name), checkpoints.contents(REFERENCE)
    assert held["lm_head.weight"] == original["lm_head.weight"]


@pytest.mark.parametrize("name", SHARING)
def test_made_again_they_are_the_same_bytes(tmp_path: Path, name: str) -> None:
    made, shared = checkpoints.copy(ASSETS / name, tmp_path / name), tmp_path / "shared.safetensors"
    shared_tensors.split(made, REFERENCE)
    shared_tensors.link(made, shared)
    for file in (*SHARDS, "model.safetensors.index.json"):
        assert (made / file).read_bytes() == (ASSETS / name / file).read_bytes()
    assert str((made / SHARDS[0]).readlink()) == "../shared.safetensors"
    assert not (made / "model.safetensors").exists()


def test_a_shared_file_with_other_tensors_is_not_written_over(tmp_path: Path) -> None:
    made, shared = checkpoints.copy(ASSETS / "w8a8", tmp_path / "w8a8"), tmp_path / "shared.safetensors"
    shared_tensors.split(made, REFERENCE)
    shared.write_bytes(b"another model's")
    with pytest.raises(SystemExit, match=r"shared\.safetensors holds other tensors than .*: remove it, or name another file"):
        shared_tensors.link(made, shared)
    assert shared.read_bytes() == b"another model's"
    assert not (made / SHARDS[0]).is_symlink()


def test_a_checkpoint_that_shares_nothing_is_left_alone(tmp_path: Path) -> None:
    made, other = tmp_path / "made", tmp_path / "other"
    checkpoints.copy(ASSETS / "w8a8", made)
    shutil.copytree(REFERENCE, other)
    checkpoints.write(other / "model.safetensors", {"model.embed_tokens.weight": ("BF16", (1,), b"\0\0")})
    with pytest.raises(SystemExit, match=r"shares no tensor with .*: leave --shared out"):
        shared_tensors.split(made, other)
    assert (made / "model.safetensors").is_file()


def test_a_gguf_file_shares_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "tools/quantize.py", "reference", "--format=q8_0", f"--out={tmp_path}", "--shared=x"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "a GGUF file holds all of its tensors: leave --shared out" in result.stderr
