"""The KV-cache and memory suites on a host with two GPUs and no network: what they print and find, and baselines to commit.

    python tools/gpu_kv_memory.py OUT PHASE...     phases are listed in PHASES; kv:sglang is a part of one

VLLM_PYTHON and SGLANG_PYTHON name the interpreters of those engines; transformers, and the plugin, run in this one. CHECKPOINTS is
a folder with what ``random_checkpoint.py`` made of llama-3-8b and qwen2.5-7b: for nf4, which vLLM reads from files, and for the KV
suites, to which dummy weights say nothing. Elsewhere shapes have dummy weights.
Sessions of a lane follow each other, lanes run side by side. Where lanes share a GPU their engines get a part of it each, and
nothing is asked that other processes' memory would change. Fails if a session did.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MEMORY = ("memory", "layout")
KV = ("kv_cache", "execution_modes")
STOP = ("shutdown",)
LLAMA, QWEN = "llama-3-8b", "qwen2.5-7b"
FILES = os.environ.get("CHECKPOINTS", "checkpoints")
PARTS = {
    ("vllm", "reference"): {"kv_cache_memory_bytes": 2 << 30, "gpu_memory_utilization": 0.05},
    ("vllm", LLAMA): {"kv_cache_memory_bytes": 9 << 30, "gpu_memory_utilization": 0.22},
    ("vllm", QWEN): {"kv_cache_memory_bytes": 9 << 30, "gpu_memory_utilization": 0.22},
    # A share of what is free when it starts, less what others take meanwhile: the pool is bounded instead.
    ("sglang", "reference"): {"mem_fraction_static": 0.9, "max_total_tokens": 1 << 16},
    ("sglang", LLAMA): {"mem_fraction_static": 0.9, "max_total_tokens": 60_000},
    ("sglang", QWEN): {"mem_fraction_static": 0.9, "max_total_tokens": 150_000},
}
"""What an engine gets of a GPU of 141 GB that it shares."""
TRITON = {"attention_backend": "triton", "sampling_backend": "pytorch"}
"""The kernels that SGLang would choose by itself are compiled at their first use, which needs a network."""


@dataclass(frozen=True)
class Session:
    """One run of pytest. gpus: as CUDA_VISIBLE_DEVICES has them. options: further words of the command line."""

    engine: str
    model: str
    gpus: str
    suites: tuple[str, ...]
    options: tuple[str, ...] = ()
    engine_args: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def command(self, out: Path) -> list[str]:
        """The command line."""
        python = {"vllm": os.environ.get("VLLM_PYTHON"), "sglang": os.environ.get("SGLANG_PYTHON")}.get(self.engine)
        arguments = {**(TRITON if self.engine == "sglang" else {}), **self.engine_args}
        return [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib"),
            *(() if entry_points(group="pytest11", name="llminfer") else ("-p", "pytest_llminfer.plugin.hooks")),
            *(f"suites/test_{suite}.py" for suite in self.suites),
            *("-v", "-rs", f"--engine={self.engine}@{python}" if python else f"--engine={self.engine}", f"--model={self.model}"),
            *(["--weights=dummy"] if self.model in (LLAMA, QWEN) else []),
            *([f"--engine-args={json.dumps(arguments)}"] if arguments else []),
            *("--update-baselines=new", f"--llminfer-report={out}/{self.label}"),
            *self.options,
        ]

    @property
    def label(self) -> str:
        """Of its files."""
        return f"{self.engine}-{Path(self.model).name}-{self.name}"


def _lane(
    engine: str,
    gpus: str,
    *sessions: tuple[str, str, tuple[str, ...], str],
    shared: bool = True,
    words: Mapping[str, Any] | None = None,
) -> list[Session]:
    """Sessions of one engine, each of (name, model, suites, options). words: further arguments of the engine."""
    return [
        Session(
            engine,
            model,
            gpus,
            suites,
            tuple(options.split()),
            {**(PARTS.get((engine, _sized(model)), {}) if shared else {}), **(words or {})},
            name,
        )
        for name, model, suites, options in sessions
    ]


def _sized(model: str) -> str:
    """The name under which PARTS has it: those of assets/ are as small as the reference model."""
    return "reference" if model.startswith("assets/") else Path(model).name


FORMATS = "--quantization=none,int8,nf4"
FEW = "not(tiny)and(not(batch-invariant))and(not(deterministic))"
"""A pool is not tiny that others share the GPU with; kernels that promise bits are asked on the reference model."""
FEWER = f"not(eager)and({FEW})"
"""Variants that tp=2 does not change: those that concern blocks and what is stored in them remain."""
PACKED = ("gptq", "awq", "w4a16", "w8a8", "fp8")
PHASES: dict[str, list[list[Session]]] = {
    "transformers": [
        _lane("transformers", "0", ("memory", LLAMA, MEMORY, FORMATS)),
        _lane("transformers", "1", ("memory", QWEN, MEMORY, FORMATS), ("kv", "reference", (*KV, "kv_equivalence"), "")),
    ],
    "kv": [
        _lane(engine, "0", ("kv", model, KV, f"--kv-variants -k={variants}"))
        for model, variants in (("reference", "not(tiny)"), (f"{FILES}/{QWEN}", FEW))
        for engine in ("vllm", "sglang")
    ],
    "memory": [
        _lane("vllm", "1", *(("memory", model, MEMORY, "--quantization=none,fp8") for model in (LLAMA, QWEN)), shared=False),
        # vLLM quantizes with bitsandbytes what it reads from files.
        _lane("vllm", "0", *(("nf4", f"{FILES}/{model}", MEMORY, "--quantization=nf4") for model in (LLAMA, QWEN))),
        _lane("sglang", "0", *(("memory", model, MEMORY, "") for model in (LLAMA, QWEN))),
    ],
    "tp": [
        _lane(
            "vllm",
            "0,1",
            ("tp2-memory", LLAMA, MEMORY, "--tp=2 --quantization=none,fp8"),
            ("tp2-memory", QWEN, MEMORY, "--tp=2 --quantization=none,fp8"),
            ("parallelism", QWEN, ("parallelism",), "--tp=1,2"),
        ),
        _lane(
            "sglang",
            "0,1",
            ("tp2-memory", LLAMA, MEMORY, "--tp=2"),
            ("tp2-memory", QWEN, MEMORY, "--tp=2"),
            ("parallelism", QWEN, ("parallelism",), "--dp=1,2"),
        ),
        *(
            _lane(engine, "0,1", ("tp2-kv", model, KV, f"--tp=2 --kv-variants -k={FEWER}"))
            for model in ("reference", f"{FILES}/{QWEN}")
            for engine in ("vllm", "sglang")
        ),
    ],
    # What the driver says of a whole device: nothing else may run on it.
    "stop": [
        [
            session
            for engine, words in (("vllm", {"enforce_eager": True}), ("sglang", {"disable_cuda_graph": True}), ("transformers", {}))
            for session in _lane(engine, "0", ("stop", "reference", STOP, "--llminfer-strict"), words=words)
        ]
    ],
    "alone": [
        [
            *_lane("vllm", "1", ("memory", LLAMA, MEMORY, "--quantization=none,fp8"), shared=False),
            *_lane("sglang", "1", ("memory", LLAMA, MEMORY, "")),
        ]
    ],
    "formats": [
        _lane(
            engine,
            "1",
            *(("formats", f"assets/{name}", ("layout", "tokens"), f"--quantization={name}") for name in names),
            words=words,
        )
        for engine, words in (("vllm", {"enforce_eager": True}), ("sglang", {"disable_cuda_graph": True}))
        for names in (PACKED[:3], PACKED[3:])
    ],
    "pp": [
        _lane(engine, "0,1", ("pp2", "reference", ("parallelism", "tokens", "layout", "memory"), "--pp=2"))
        for engine in ("vllm", "sglang")
    ],
    "spread": [
        _lane(engine, "0,1", ("spread", "reference", ("parallelism",), "--gpus=2 --update-baselines"))
        for engine in ("vllm", "sglang", "transformers")
    ],
    # Twice: what the first run records judges the second.
    "speed": [
        [
            session
            for name in ("speed", "speed-again")
            for engine in ("vllm", "sglang", "transformers")
            for session in _lane(engine, "0", (name, "reference", ("throughput",), ""), shared=False)
        ]
    ],
}
"""Lanes of sessions."""


def run(session: Session, out: Path) -> int:
    """Its exit status; what it prints goes to a file. GPUs are shared out here: each session has locks of its own."""
    locks = out / "locks" / session.label
    locks.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": session.gpus,
        "LLMINFER_LOCKS": str(locks),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "180",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    started = time.monotonic()
    with (out / f"{session.label}.txt").open("w") as file:
        command = session.command(out)
        print(" ".join(command), file=file, flush=True)
        status = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    print(f"{session.label}: status {status} after {time.monotonic() - started:.0f} s", flush=True)
    return status


def main() -> int:
    """Run the phases one after another."""
    out = Path(sys.argv[1]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for word in sys.argv[2:]:
        phase, _, part = word.partition(":")
        chosen = ([session for session in lane if part in session.label] for lane in PHASES[phase])
        lanes = [lane for lane in chosen if lane]
        with ThreadPoolExecutor(len(lanes)) as pool:
            statuses = list(pool.map(lambda lane: [run(session, out) for session in lane], lanes))
        failed += sum(bool(status) for lane in statuses for status in lane)
        with tarfile.open(out / "baselines.tar", "w") as archive:
            archive.add("baselines")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
