"""What the tests run on, found out without any framework. Standard library only."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

QUERY = ("--query-gpu=index,uuid,name,memory.total,driver_version", "--format=csv,noheader")
_USED = ("--query-gpu=memory.used", "--format=csv,noheader,nounits")
_FIELDS_AROUND_NAME = 4


@dataclass(frozen=True, slots=True)
class Hardware:
    """One machine as the tests see it.

    Attributes:
        accelerator: The exact name of the visible GPUs, joined by " + " where they differ; empty without one.
        count: How many GPUs are visible; 0 without an accelerator.
        cpu: The processor's model name; empty where neither kernel nor platform gives one.
        cores: Processor cores that this process may use.
        memory_mib: Memory of one accelerator in MiB, of the smallest where they differ; 0 where unknown.
        driver: Version of the NVIDIA driver; empty where unknown.
    """

    accelerator: str
    count: int
    cpu: str
    cores: int
    memory_mib: int = 0
    driver: str = ""

    @property
    def key(self) -> str:
        """The folder of its baselines: ``nvidia-h100-80gb-hbm3-x1``, or ``amd-epyc-4-cores`` without an accelerator."""
        if self.accelerator:
            return f"{slug(self.accelerator)}-x{self.count}"
        return f"{slug(self.cpu) or 'unknown-cpu'}-{self.cores}-cores"

    def using(self, count: int) -> Hardware:
        """The same machine with ``count`` of its accelerators: what one cell takes. Unchanged without an accelerator."""
        return replace(self, count=count) if self.accelerator else self

    def without_accelerators(self) -> Hardware:
        """The same machine as an engine on its processor uses it."""
        return replace(self, accelerator="", count=0, memory_mib=0, driver="")

    def describe(self) -> str:
        """One line for a header."""
        host = f"{self.cpu or 'unknown processor'}, {self.cores} usable core{'s' * (self.cores != 1)}"
        if not self.accelerator:
            return f"no accelerator; {host}"
        facts = [f"{self.memory_mib} MiB each"] * bool(self.memory_mib) + [f"driver {self.driver}"] * bool(self.driver)
        return f"{self.count} x {self.accelerator}{' (' + ', '.join(facts) + ')' if facts else ''}; {host}"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as a line of nvidia-smi describes it.

    Attributes:
        index: Its number in nvidia-smi, which orders GPUs by PCI bus.
        uuid: ``GPU-…``; of a MIG slice the ``MIG-…`` entry of ``CUDA_VISIBLE_DEVICES``.
        name: The product name; of a MIG slice that of its GPU with " MIG" added.
        memory_mib: ``memory.total`` in MiB; 0 where it is not known, as for a MIG slice.
        driver: Version of the NVIDIA driver.
    """

    index: int
    uuid: str
    name: str
    memory_mib: int
    driver: str


def slug(text: str) -> str:
    """``text`` as the name of a file or folder: lower case, letters, digits, ``_``, ``.`` and ``-``, never a leading dot."""
    text = re.sub(r"\((?:r|tm|c)\)", " ", unicodedata.normalize("NFC", text).lower())
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


def detect(environ: Mapping[str, str] | None = None, *, timeout_seconds: float = 10.0) -> Hardware:
    """The hardware that ``environ`` (of this process, unless given) leaves visible.

    Takes as long as nvidia-smi does. Where that is missing, fails or says nothing within ``timeout_seconds``, there is no
    accelerator. Never raises.
    """
    return describe_machine(visible_gpus(environ, timeout_seconds=timeout_seconds), cpu=processor_name(), cores=usable_cores())


def visible_gpus(environ: Mapping[str, str] | None = None, *, timeout_seconds: float = 10.0) -> list[Gpu]:
    """The GPUs that ``environ`` (of this process, unless given) leaves visible; none where nvidia-smi does not answer."""
    environ = os.environ if environ is None else environ
    listed = _ask_nvidia_smi(*QUERY, environ=environ, timeout_seconds=timeout_seconds)
    return visible(parse_nvidia_smi(listed), environ.get("CUDA_VISIBLE_DEVICES"))


def device_bytes(ids: Iterable[str], *, timeout_seconds: float = 30.0) -> int | None:
    """Bytes in use on these GPUs together, by all processes, as nvidia-smi reads them; None where it does not answer.

    ids: UUIDs, ``GPU-…``; nvidia-smi knows no other ids, so that with any other the result is None.
    """
    names = list(ids)
    if not names or not all(name.startswith("GPU-") for name in names):
        return None
    answer = _ask_nvidia_smi(*_USED, f"--id={','.join(names)}", environ=os.environ, timeout_seconds=timeout_seconds)
    readings = answer.split()
    return sum(map(int, readings)) * 2**20 if readings and all(map(str.isdecimal, readings)) else None


def describe_machine(gpus: Sequence[Gpu], *, cpu: str, cores: int) -> Hardware:
    """The hardware made of these visible GPUs and this processor."""
    if not gpus:
        return Hardware("", 0, cpu, cores)
    name = " + ".join(sorted({gpu.name for gpu in gpus}))
    return Hardware(name, len(gpus), cpu, cores, min(gpu.memory_mib for gpu in gpus), gpus[0].driver)


def parse_nvidia_smi(output: str) -> list[Gpu]:
    """The GPUs that the answer to ``QUERY`` lists; lines that are something else ("No devices were found") are left out."""
    gpus = []
    for line in output.splitlines():
        index, _, rest = line.partition(",")
        parts = [part.strip() for part in rest.split(",")]
        if not index.strip().isdecimal() or len(parts) < _FIELDS_AROUND_NAME:
            continue
        uuid, *name, memory, driver = parts
        mib = re.match(r"\d+", memory)
        gpus.append(Gpu(int(index), uuid, ", ".join(name), int(mib.group()) if mib else 0, driver))
    return gpus


def visible(gpus: Sequence[Gpu], devices: str | None) -> list[Gpu]:
    """Those of ``gpus`` that ``CUDA_VISIBLE_DEVICES`` (None: not set) leaves visible, in its order.

    As CUDA reads it: indices or unambiguous starts of UUIDs, and everything from the first entry that names nothing is
    hidden. A MIG slice has no line of its own in nvidia-smi's query; it is named after the first GPU, with "MIG" added.
    """
    if devices is None:
        return list(gpus)
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in devices.split(",")):
        if entry.startswith("MIG-") and gpus:
            chosen.append(replace(gpus[0], uuid=entry, name=f"{gpus[0].name} MIG", memory_mib=0))
            continue
        matches = [gpu for gpu in gpus if _names(entry, gpu)]
        if len(matches) != 1:
            break
        chosen += [gpu for gpu in matches if gpu not in chosen]
    return chosen


def _names(entry: str, gpu: Gpu) -> bool:
    return gpu.index == int(entry) if entry.isdecimal() else entry.startswith("GPU-") and gpu.uuid.startswith(entry)


def parse_cpuinfo(text: str) -> str:
    """The model name in the text of /proc/cpuinfo; empty where it has none (many ARM kernels)."""
    found = re.search(r"^model name[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)
    return " ".join(found.group(1).split()) if found else ""


_CHOOSE_KERNELS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "bf16", "sve"),
)
"""Flags of x86-64 and of ARM64 by which oneDNN, PyTorch and llama.cpp choose the kernel that multiplies."""


def parse_instruction_sets(text: str) -> tuple[str, ...]:
    """The instruction sets in the text of /proc/cpuinfo that choose the kernels of an engine, in a fixed order."""
    found = re.search(r"^(?:flags|Features)[ \t]*:(.*)$", text, re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    return tuple(name for name in _CHOOSE_KERNELS if name in flags)


def _ask_nvidia_smi(*words: str, environ: Mapping[str, str], timeout_seconds: float) -> str:
    """What nvidia-smi prints; empty where it is missing, fails, or is silent for too long."""
    try:
        process = subprocess.Popen(  # noqa: S603 - a fixed command
            ["nvidia-smi", *words],  # noqa: S607 - the driver's own, wherever the system keeps it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=dict(environ),
        )
    except OSError:
        return ""
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        if process.stdout:
            process.stdout.close()
        # Behind a wedged driver the process cannot be killed at once: subprocess.run would wait for it without limit.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        return ""
    return output if process.returncode == 0 else ""


def processor_name() -> str:
    """The processor's model name, as the kernel or else the platform gives it."""
    return parse_cpuinfo(_cpuinfo()) or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """This processor's instruction sets that choose kernels; empty where the kernel does not tell.

    A name such as "AMD EPYC" stands for generations of processors, which round otherwise.
    """
    return parse_instruction_sets(_cpuinfo())


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def usable_cores() -> int:
    """Processor cores that this process may use; on macOS, which does not limit them, all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
