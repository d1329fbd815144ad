"""The KV-cache and memory suites on a host with two GPUs and no network: what they print, JUnit files, and baselines to commit.

    python tools/gpu_kv_memory.py OUT PHASE...     phases: transformers, kv, memory, tp, stop, formats; kv:sglang is a part of one

VLLM_PYTHON and SGLANG_PYTHON name the interpreters of those engines; transformers, and the plugin, run in this one. CHECKPOINTS is
a folder with what ``random_checkpoint.py`` made of llama-3-8b and qwen2.5-7b; where no path is given, shapes have dummy weights.
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
from typing import Any

MEMORY = ("memory_budget", "dtype_layout")
KV = ("kv_cache", "kv_schedules")
STOP = ("start_stop",)
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
            *(() if entry_points(group="pytest11", name="llminfer") else ("-p", "pytest_llminfer.plugin")),
            *(f"suites/test_{suite}.py" for suite in self.suites),
            *("-v", "-rs", f"--engine={self.engine}@{python}" if python else f"--engine={self.engine}", f"--model={self.model}"),
            *(["--weights=dummy"] if self.model in (LLAMA, QWEN) else []),
            *([f"--engine-args={json.dumps(arguments)}"] if arguments else []),
            *("--update-baselines=new", f"--junitxml={out}/{self.label}.xml"),
            *self.options,
        ]

    @property
    def label(self) -> str:
        """Of its files."""
        return f"{self.engine}-{Path(self.model).name}-{self.name}"


def _lane(engine: str, gpus: str, *sessions: tuple[str, str, tuple[str, ...], str], shared: bool = True) -> list[Session]:
    """Sessions of one engine, each of (name, model, suites, options)."""
    return [
        Session(
            engine, model, gpus, suites, tuple(options.split()), PARTS.get((engine, Path(model).name), {}) if shared else {}, name
        )
        for name, model, suites, options in sessions
    ]


FORMATS = "--quantization=none,int8,nf4"
FEWER = "not(eager)and(not(tiny))and(not(batch-invariant))and(not(deterministic))"
"""Variants that tp=2 does not change: those that concern blocks and what is stored in them remain."""
PACKED = ("gptq", "awq", "w4a16", "w8a8", "fp8")
PHASES: dict[str, list[list[Session]]] = {
    "transformers": [
        _lane("transformers", "0", ("memory", LLAMA, MEMORY, FORMATS)),
        _lane("transformers", "1", ("memory", QWEN, MEMORY, FORMATS), ("kv", "reference", (*KV, "kv_equivalence"), "")),
    ],
    "kv": [
        _lane(engine, "0", ("kv", model, KV, "--kv-variants -k=not(tiny)"))
        for model in ("reference", QWEN)
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
            for model in ("reference", QWEN)
            for engine in ("vllm", "sglang")
        ),
    ],
    "stop": [
        _lane("vllm", "0", ("stop", "reference", STOP, "--llminfer-strict")),
        [
            *_lane("transformers", "1", ("stop", "reference", STOP, "--llminfer-strict")),
            *_lane("sglang", "1", ("stop", "reference", STOP, "--llminfer-strict")),
        ],
    ],
    "formats": [
        _lane(
            "sglang", "0", *(("formats", f"assets/{name}", ("dtype_layout", "tokens"), f"--quantization={name}") for name in PACKED)
        ),
        _lane(
            "vllm", "1", *(("formats", f"assets/{name}", ("dtype_layout", "tokens"), f"--quantization={name}") for name in PACKED)
        ),
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
        "TMPDIR": str(locks),
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
