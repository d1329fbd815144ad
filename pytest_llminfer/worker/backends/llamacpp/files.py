"""From a cell and a model to the GGUF file that is loaded: given, converted or quantized."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.gguf import read_gguf
from pytest_llminfer.checkpoints.safetensors import is_local, read_configuration
from pytest_llminfer.errors import BadInputError, EngineError, EngineStartError, UnsupportedError
from pytest_llminfer.worker.backends.llamacpp import cache
from pytest_llminfer.worker.backends.llamacpp.architecture import Architecture
from pytest_llminfer.worker.backends.llamacpp.arguments import default_threads
from pytest_llminfer.worker.backends.llamacpp.tokenizer import read_vocabulary
from pytest_llminfer.worker.backends.packages import require, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_llminfer.spec import EngineSpec

    Progress = Callable[[str, int, int], None]

QUANTIZED = {"q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}
"""A cell's quantization to llama.cpp's name of its mixture."""

_PLAIN = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_CONFIG_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_HEARTBEAT_SECONDS = 10.0
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF file to load.

    Attributes:
        path: The file.
        dtype: Of its unquantized matrices, or of the matrices before quantization, in the words of a cell.
        end_token_ids: Tokens that end an answer, in rising order.
    """

    path: Path
    dtype: str
    end_token_ids: list[int]


def model_file(spec: EngineSpec, model_path: str, progress: Progress) -> ModelFile:
    """The file of a cell; a model in transformers' format is converted at its first use.

    dtype ``auto`` is the configuration's: bf16 weights stay bf16, bit for bit, which llama.cpp computes with on every processor.

    Raises:
        BadInputError: nothing there, damaged files, or a .gguf file that holds something else than the cell says.
        UnsupportedError: a quantization, architecture or tokenizer that has no place here.
    """
    if spec.quantization not in {"none", *QUANTIZED}:
        raise UnsupportedError(f"llama.cpp has no quantization {spec.quantization!r}", f"use one of: none, {', '.join(QUANTIZED)}")
    path = Path(model_path).expanduser()
    if path.suffix == ".gguf":
        return _given(spec, path)
    folder = path if is_local(model_path) else _fetched(model_path)
    if folder.name == "config.json":
        folder = folder.parent
    config = read_configuration(str(folder))
    dtype = (
        _CONFIG_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "fp32") if spec.dtype == "auto" else spec.dtype
    )
    return ModelFile(_converted(spec, folder, config, dtype, progress), dtype, _end_tokens(folder, config))


def _given(spec: EngineSpec, path: Path) -> ModelFile:
    file = read_gguf(path)
    if spec.weights == "dummy":
        raise BadInputError(f"{path} holds real weights; weights=dummy needs a folder with config.json")
    found = file.file_type
    quantization = "none" if found in _PLAIN else found
    if quantization != spec.quantization:
        hint = f"ask for quantization={quantization}" if quantization in {"none", *QUANTIZED} else "no cell names that type yet"
        raise BadInputError(f"{path} is stored as {found}, not quantization={spec.quantization}; {hint}")
    dtype = _PLAIN.get(found, "fp16")
    if spec.dtype not in {"auto", dtype} and found in _PLAIN:
        raise BadInputError(f"{path} is stored as {found}, not dtype={spec.dtype}; ask for dtype={dtype} or auto")
    ends = {file.metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS}
    return ModelFile(path, dtype, sorted(token for token in ends if isinstance(token, int)))


def _converted(spec: EngineSpec, folder: Path, config: Mapping[str, Any], dtype: str, progress: Progress) -> Path:
    architecture = Architecture.from_config(config)
    require("gguf", purpose=f"converting {folder.name} to GGUF")
    convert = importlib.import_module("pytest_llminfer.worker.backends.llamacpp.convert")
    source = importlib.import_module("pytest_llminfer.worker.backends.llamacpp.source")
    version = f"{convert.CONVERTER_VERSION}-gguf{versions('gguf').get('gguf', '')}"
    kept = cache.root() / cache.fingerprint(folder, weights=spec.weights, version=version)

    def make(path: Path) -> None:
        given = source.DummySource(architecture) if spec.weights == "dummy" else source.CheckpointSource(folder, architecture)
        vocabulary = read_vocabulary(folder, architecture.vocabulary)
        ids = {"eos": next(iter(_end_tokens(folder, config)), None), "pad": config.get("pad_token_id")}
        tokens = {name: token for name, token in ids.items() if isinstance(token, int)}
        convert.write_gguf(path, architecture, given, vocabulary, tokens, dtype=dtype, progress=progress)

    plain = cache.obtain(kept / f"model-{dtype}.gguf", make, progress)
    if spec.quantization == "none":
        return plain
    # Another version may quantize in another way, and telling them apart is what this package is for.
    quantizer = versions("llama-cpp-python").get("llama-cpp-python", "unknown")
    quantized = kept / f"model-{dtype}-{spec.quantization}-{quantizer}.gguf"
    return cache.obtain(quantized, lambda path: _quantize(plain, path, spec.quantization, progress), progress)


def _quantize(source: Path, target: Path, quantization: str, progress: Progress) -> None:
    library = importlib.import_module("llama_cpp")
    params = library.llama_model_quantize_default_params()
    params.ftype = getattr(library, QUANTIZED[quantization])
    params.nthread = default_threads()
    with _heartbeat(progress, "quantizing"):
        status = library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if status != 0:
        raise EngineError(f"llama.cpp could not quantize {source.name} to {quantization} (status {status}); its log says why")
    if (found := read_gguf(target).file_type) != quantization:
        raise EngineError(f"llama.cpp wrote {found} where {quantization} was asked for")
    progress("quantizing", 1, 1)


@contextlib.contextmanager
def _heartbeat(progress: Progress, phase: str) -> Iterator[None]:
    """Report every few seconds that a long call into the library is still running."""
    over = threading.Event()

    def tell() -> None:
        progress(phase, 0, 1)
        while not over.wait(_HEARTBEAT_SECONDS):
            progress(phase, 0, 1)

    teller = threading.Thread(target=tell, name="llminfer-heartbeat", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _end_tokens(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """The end tokens of generation_config.json, otherwise of the configuration."""
    file = folder / "generation_config.json"
    holders = [json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []
    for holder in (*holders, config):
        ids = holder.get("eos_token_id")
        if ids is not None:
            return sorted({int(token) for token in (ids if isinstance(ids, list) else [ids])})
    return []


def _fetched(model_id: str) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise EngineStartError(
            f"fetching {model_id} needs huggingface_hub, which this interpreter does not have: pip install huggingface_hub, "
            "or give the path of a model folder"
        ) from error
    try:
        return Path(hub.snapshot_download(model_id, allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
    except Exception as error:
        raise BadInputError(f"{model_id} cannot be fetched from the hub: {next(iter(str(error).splitlines()), '')}") from error
