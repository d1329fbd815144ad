"""What the tests run on: the parsing with literals, the asking with a stand-in for nvidia-smi."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pytest_llminfer.engines.engine import Launch
from pytest_llminfer.engines.launchers import local
from pytest_llminfer.hardware import (
    Gpu,
    Hardware,
    describe_machine,
    detect,
    device_bytes,
    parse_cpuinfo,
    parse_instruction_sets,
    parse_nvidia_smi,
    processor_name,
    slug,
    visible,
)
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.protocol.frames import ACCELERATOR, PROCESSOR

H100 = "NVIDIA H100 80GB HBM3"
OUTPUT = """\
0, GPU-aaaa1111-0000, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15
1, GPU-aaaa2222-0000, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15
2, GPU-bbbb3333-0000, Tesla T4, 15360 MiB, 550.54.15
"""
GPUS = parse_nvidia_smi(OUTPUT)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (H100, "nvidia-h100-80gb-hbm3"),
        ("AMD EPYC", "amd-epyc"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon-cpu-2.20ghz"),
        ("NVIDIA A100-SXM4-40GB MIG", "nvidia-a100-sxm4-40gb-mig"),
        ("../..", ""),
        ("kv_cache", "kv_cache"),
    ],
)
def test_a_slug_names_a_file(text: str, name: str) -> None:
    assert slug(text) == name
    assert slug(name) == name


def test_nvidia_smi_is_read_field_by_field() -> None:
    assert GPUS[0] == Gpu(0, "GPU-aaaa1111-0000", H100, 81559, "550.54.15")
    assert [gpu.index for gpu in GPUS] == [0, 1, 2]


@pytest.mark.parametrize(
    ("output", "gpus"),
    [
        ("", []),
        ("No devices were found\n", []),
        ("0, GPU-1, Tesla T4\n", []),
        ("0, GPU-1, NVIDIA GB10, [N/A], 580.1\n", [Gpu(0, "GPU-1", "NVIDIA GB10", 0, "580.1")]),
        ("0, GPU-1, Odd, Name, 16 MiB, 1\n", [Gpu(0, "GPU-1", "Odd, Name", 16, "1")]),
        ("²,GPU-1,T4,16 MiB,1\n", []),
    ],
)
def test_odd_answers_of_nvidia_smi(output: str, gpus: list[Gpu]) -> None:
    assert parse_nvidia_smi(output) == gpus


@pytest.mark.parametrize(
    ("devices", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [0]),
        ("2, 0", [2, 0]),
        ("0,7,1", [0]),
        ("0,0,1", [0, 1]),
        ("GPU-aaaa2222-0000", [1]),
        ("GPU-bbbb,0", [2, 0]),
        ("GPU-aaaa", []),
        ("GPU-cccc", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(devices: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in visible(GPUS, devices)] == indices


def test_a_mig_slice_is_not_the_whole_gpu() -> None:
    assert describe_machine(visible(GPUS, "MIG-1234"), cpu="c", cores=1).key == "nvidia-h100-80gb-hbm3-mig-x1"
    assert visible([], "MIG-1234") == []


def test_the_key_and_header_of_gpus() -> None:
    hardware = describe_machine(GPUS[:2], cpu="AMD EPYC", cores=16)
    assert hardware == Hardware(H100, 2, "AMD EPYC", 16, 81559, "550.54.15")
    assert hardware.key == "nvidia-h100-80gb-hbm3-x2"
    assert hardware.using(1).key == "nvidia-h100-80gb-hbm3-x1"
    assert hardware.describe() == f"2 x {H100} (81559 MiB each, driver 550.54.15); AMD EPYC, 16 usable cores"
    assert Hardware(H100, 1, "", 1).describe() == f"1 x {H100}; unknown processor, 1 usable core"


def test_different_gpus_make_a_key_of_their_own() -> None:
    hardware = describe_machine(GPUS, cpu="", cores=1)
    assert hardware.key == "nvidia-h100-80gb-hbm3-tesla-t4-x3"
    assert hardware == describe_machine(GPUS[::-1], cpu="", cores=1)


def test_the_key_and_header_without_an_accelerator() -> None:
    hardware = describe_machine([], cpu="AMD EPYC", cores=4)
    assert hardware.key == hardware.using(2).key == "amd-epyc-4-cores"
    assert hardware.describe() == "no accelerator; AMD EPYC, 4 usable cores"
    assert describe_machine([], cpu="", cores=4).key == "unknown-cpu-4-cores"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\ncache size\t: 512 KB\nmodel name\t: other\n", "AMD EPYC"),
        ("model name : Intel(R)  Xeon(R)   CPU \n", "Intel(R) Xeon(R) CPU"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", ""),
        ("model name\t:\nflags\t: fpu\n", ""),
        ("", ""),
    ],
)
def test_the_processor_is_read_from_cpuinfo(text: str, name: str) -> None:
    assert parse_cpuinfo(text) == name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("flags\t\t: fpu avx512_bf16 avx2 sse avx512f\nflags\t\t: amx_bf16\n", ("avx2", "avx512f", "avx512_bf16")),
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx2\n", ("avx2",)),
        ("Features\t: fp asimd evtstrm bf16\n", ("asimd", "bf16")),
        ("flags\t\t: avx2x\n", ()),
        ("", ()),
    ],
)
def test_instruction_sets_that_choose_kernels_are_read_from_cpuinfo(text: str, names: tuple[str, ...]) -> None:
    assert parse_instruction_sets(text) == names


def stand_in(directory: Path, script: str) -> dict[str, str]:
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{directory}:/usr/bin:/bin"}


def test_gpus_are_detected_through_nvidia_smi(tmp_path: Path) -> None:
    environ = stand_in(tmp_path, f"cat <<'END'\n{OUTPUT}END")
    hardware = detect(environ)
    assert (hardware.count, hardware.driver, hardware.memory_mib) == (3, "550.54.15", 15360)
    assert detect({**environ, "CUDA_VISIBLE_DEVICES": "1"}).key == "nvidia-h100-80gb-hbm3-x1"
    assert detect({**environ, "CUDA_VISIBLE_DEVICES": ""}).accelerator == ""


@pytest.mark.parametrize("script", ["echo no driver; exit 9", "echo No devices were found", "printf '\\377\\n'", "kill -9 $$"])
def test_a_failing_nvidia_smi_means_no_accelerator(tmp_path: Path, script: str) -> None:
    hardware = detect(stand_in(tmp_path, script))
    assert (hardware.accelerator, hardware.count) == ("", 0)
    assert hardware.cpu
    assert hardware.cores >= 1


def test_a_missing_nvidia_smi_means_no_accelerator(tmp_path: Path) -> None:
    assert detect({"PATH": str(tmp_path)}).key.endswith("-cores")


@pytest.mark.parametrize("script", ["exec sleep 5", "sleep 5; true"], ids=["itself", "in a child that holds the pipe"])
def test_a_hanging_nvidia_smi_is_given_up(tmp_path: Path, script: str) -> None:
    start = time.monotonic()
    assert detect(stand_in(tmp_path, script), timeout_seconds=0.2).accelerator == ""
    assert time.monotonic() - start < 4


def test_memory_in_use_is_summed_over_the_gpus_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    monkeypatch.setenv("PATH", stand_in(tmp_path, f'echo "$*" >{asked}\necho 512\necho 3')["PATH"])
    assert device_bytes(["GPU-1", "GPU-2"]) == 515 * 2**20
    assert "--id=GPU-1,GPU-2" in asked.read_text()
    assert device_bytes(["cuda:0"]) is None
    assert device_bytes([]) is None


@pytest.mark.parametrize("script", ["exit 9", "echo '[N/A]'", "echo 512; exit 9", "true"])
def test_memory_in_use_is_unknown_where_nvidia_smi_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setenv("PATH", stand_in(tmp_path, script)["PATH"])
    assert device_bytes(["GPU-1"]) is None


def launch(tmp_path: Path, spec: str, **variables: str) -> Launch:
    return Launch(EngineSpec.parse(spec), Model("reference"), {}, variables, 10.0, tmp_path / "log")


def test_the_worker_of_a_server_is_told_its_first_visible_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stand_in(tmp_path, f"cat <<'END'\n{OUTPUT}END")["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch(tmp_path, "vllm-serve").acquire_devices() == {ACCELERATOR: H100}
    assert launch(tmp_path, "vllm-serve", CUDA_VISIBLE_DEVICES="2").acquire_devices()[ACCELERATOR] == "Tesla T4"
    assert ACCELERATOR not in launch(tmp_path, "vllm-serve", CUDA_VISIBLE_DEVICES="").acquire_devices()
    assert ACCELERATOR not in launch(tmp_path, "vllm").acquire_devices()


def test_a_worker_is_told_its_processor(tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\nexec env\n")
    interpreter.chmod(0o755)
    with local.start(str(interpreter), {}, tmp_path / "log") as process:
        output, _ = process.communicate(timeout=30)
    assert f"{PROCESSOR}={processor_name()}" in output.decode().splitlines()
