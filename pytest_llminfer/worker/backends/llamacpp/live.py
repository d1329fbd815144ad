"""A loaded file and what belongs to it: the ``Llama``, its context, and the memory measured around its loading."""

from __future__ import annotations

import contextlib
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llama_cpp

from pytest_llminfer.checkpoints import gguf_layout as layout
from pytest_llminfer.checkpoints.gguf import GgufFile, read_gguf
from pytest_llminfer.errors import BadInputError, EngineStartError, OutOfMemoryError
from pytest_llminfer.worker.backends.host import available_bytes
from pytest_llminfer.worker.backends.llamacpp import kv_pool, settings
from pytest_llminfer.worker.backends.llamacpp.arguments import KV_TYPES, Arguments
from pytest_llminfer.worker.backends.llamacpp.decoder import Decoder
from pytest_llminfer.worker.backends.llamacpp.device import device_name
from pytest_llminfer.worker.backends.llamacpp.files import model_file
from pytest_llminfer.worker.backends.llamacpp.kv_cache import CacheReader
from pytest_llminfer.worker.backends.llamacpp.log import NativeLog
from pytest_llminfer.worker.backends.llamacpp.memory import HostMeter
from pytest_llminfer.worker.backends.packages import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

    from pytest_llminfer.spec import EngineSpec

    Progress = Callable[[str, int, int], None]

_OUT_OF_MEMORY = ("failed to allocate", "unable to allocate", "cannot allocate", "out of memory", "bad_alloc")


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A loaded file and what belongs to it.

    Attributes:
        library: The module with llama.cpp's C functions.
        llama: The ``llama_cpp.Llama``.
        decoder: Its context, computed with token by token.
        file: Header of the loaded file.
        arguments: What ``Llama`` was given.
        meter: Reads the memory of this process.
        dtype: Of unquantized matrices, in the words of a cell.
        end_token_ids: Tokens that end an answer, in rising order.
        load_peak_bytes: Highest use of memory while loading, above what was in use before.
        load_seconds: Seconds of the phases ``import``, ``convert`` and ``load``.
        limits: ``vocab_size`` and ``max_positions``, as ``requests.check_tokens`` takes them.
        offloaded: Whether a GPU holds the layers.
    """

    library: Any
    llama: Any
    decoder: Decoder
    file: GgufFile
    arguments: Arguments
    meter: HostMeter
    dtype: str
    end_token_ids: list[int]
    load_peak_bytes: int
    load_seconds: dict[str, float]
    limits: dict[str, int]
    offloaded: bool

    @classmethod
    def load(cls, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress, *, started: float) -> Self:
        """Convert where needed, take the idle process as zero of the memory peaks, then load."""
        log = NativeLog(llama_cpp)
        offload = bool(llama_cpp.llama_supports_gpu_offload())
        arguments = Arguments.read(engine_args, llama_cpp.Llama, spec, offload=offload)
        imported = time.perf_counter()
        chosen = model_file(spec, model_path, progress)
        file = read_gguf(chosen.path)
        converted = time.perf_counter()
        _check_room(file, arguments)
        meter = HostMeter()
        meter.start()
        progress("loading", 0, 1)
        llama = _load(chosen.path, arguments, log)
        decoder = Decoder(llama_cpp.llama_cpp, llama)
        load_peak_bytes = meter.peak_bytes()
        meter.reset_peak()
        progress("loading", 1, 1)
        loaded = time.perf_counter()
        positions = min(kv_pool.metadata(file, "context_length"), decoder.cells)
        return cls(
            library=llama_cpp.llama_cpp,
            llama=llama,
            decoder=decoder,
            file=file,
            arguments=arguments,
            meter=meter,
            dtype=chosen.dtype,
            end_token_ids=chosen.end_token_ids,
            load_peak_bytes=load_peak_bytes,
            load_seconds={"import": imported - started, "convert": converted - imported, "load": loaded - converted},
            limits={"vocab_size": decoder.vocabulary, "max_positions": positions},
            offloaded=offload and arguments.keywords["n_gpu_layers"] != 0,
        )

    @property
    def device(self) -> str:
        """Where the layers are; of the kinds of GPU that llama.cpp knows, all but CUDA are called "gpu"."""
        if not self.offloaded:
            return "cpu"
        return "cuda" if b"CUDA" in llama_cpp.llama_print_system_info() else "gpu"

    def information(self) -> dict[str, Any]:
        """The fields of ``EngineInfo`` but the capabilities."""
        kinds = {number: name for name, number in KV_TYPES.items()}
        key = self.arguments.keywords["type_k"]
        installed = versions("llama-cpp-python", "gguf", "numpy")
        return {
            "dtype": self.dtype,
            "kv_dtype": kinds.get(key, str(key)),
            "device": self.device,
            "device_name": device_name(offloaded=self.offloaded),
            "device_count": 1,
            "versions": {"engine": installed["llama-cpp-python"], **installed, "python": platform.python_version()},
            "load_seconds": self.load_seconds,
            "end_token_ids": self.end_token_ids,
        }

    def memory(self, *, reset_peak: bool) -> dict[str, Any]:
        """The fields of ``MemoryReport``."""
        report = {
            "device": self.device,
            "weights_bytes": sum(tensor.stored_bytes for tensor in self.file.tensors.values()),
            "buffers_bytes": 0,
            "live_bytes": self.meter.live_bytes(),
            "load_peak_bytes": self.load_peak_bytes,
            "run_peak_bytes": self.meter.peak_bytes(),
            "measured_by": self.meter.measured_by,
            "resolution_bytes": self.meter.resolution_bytes(),
            "kv_pool_bytes": self.pool()["stored_bytes"],
        }
        if reset_peak:
            self.meter.reset_peak()
        return report

    def pool(self) -> dict[str, Any]:
        """The fields of ``KVPool``."""
        keywords = self.arguments.keywords
        return kv_pool.report(
            self.file, self.decoder.cells, keywords["type_k"], keywords["type_v"], longest=self.limits["max_positions"]
        )

    def cache_report(self, prompt: Sequence[int], extend: int) -> dict[str, Any]:
        """The fields of ``CacheReport``."""
        kinds = (self.arguments.keywords["type_k"], self.arguments.keywords["type_v"])
        return CacheReader.of(self.library, self.decoder, self.file, kinds).report(prompt, extend)

    def layout(self) -> dict[str, Any]:
        """Every tensor of the file."""
        return layout.report(self.file, self.device)

    def settings(self) -> dict[str, Any]:
        """The parameters in force, and the defaults."""
        keywords = {name: value for name, value in self.arguments.keywords.items() if isinstance(value, (bool, int, float, str))}
        resolved = {"file_type": self.file.file_type, "n_seq_max": self.arguments.sequences, "arguments": keywords}
        return settings.report(self.library, self.llama, resolved)

    def rest(self) -> None:
        """Leave nothing in the cache, whatever a request or a probe did."""
        self.decoder.clear()
        self.llama.reset()


def _check_room(file: GgufFile, arguments: Arguments) -> None:
    """Refuse a cache that the host cannot hold: it would be granted, and the process killed while it is cleared."""
    keywords = arguments.keywords
    wanted = kv_pool.report(file, keywords["n_ctx"], keywords["type_k"], keywords["type_v"], longest=1)["stored_bytes"]
    if not keywords["n_gpu_layers"] and 0 < available_bytes() < wanted:
        raise OutOfMemoryError(_too_large(keywords["n_ctx"], wanted, f"{available_bytes():,} bytes are free"))


def _too_large(cells: int, wanted: int, reason: str) -> str:
    return f"a KV cache of {cells:,} tokens takes {wanted:,} bytes ({reason}); lower n_ctx or choose a smaller kv_dtype"


def _load(path: Any, arguments: Arguments, log: NativeLog) -> Any:
    log.forget()
    try:
        with _context_defaults(n_seq_max=arguments.sequences, kv_unified=True):
            return llama_cpp.Llama(model_path=str(path), **arguments.keywords)
    except (ValueError, RuntimeError, MemoryError, OSError, AssertionError, TypeError) as error:
        said = log.errors()
        text = f"{said} {error}".lower()
        if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
            raise OutOfMemoryError(
                f"llama.cpp ran out of memory at n_ctx={arguments.keywords['n_ctx']:,}: {said or error}"
            ) from error
        if "load model" in str(error):
            raise BadInputError(f"llama.cpp cannot load {path.name}: {said or error}; convert or fetch the file again") from error
        raise EngineStartError(f"llama.cpp cannot be set up with {arguments.keywords}: {said or error}") from error


@contextlib.contextmanager
def _context_defaults(**fields: Any) -> Iterator[None]:
    """Contexts that are made meanwhile start from these fields, which ``Llama`` has no keyword for."""
    module = llama_cpp.llama_cpp
    original = module.llama_context_default_params

    def changed() -> Any:
        params = original()
        for name, value in fields.items():
            setattr(params, name, value)
        return params

    module.llama_context_default_params = changed
    try:
        yield
    finally:
        module.llama_context_default_params = original
