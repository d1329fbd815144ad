"""Memory of GPUs by name: what nvidia-smi lists, and what CUDA leaves of it to programs, where that is known."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llminfer.errors import InvalidSpecError
from pytest_llminfer.predict.allocator import MIB

_MODAL = "modal-labs/modal-client#2797"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of card, and how much memory it has.

    Attributes:
        name: NVIDIA's name without the words that all cards share.
        listed_mib: ``memory.total`` of nvidia-smi in MiB; 0 where it is not known here.
        cuda_mib: The total of ``cudaMemGetInfo`` in MiB, of which an engine's utilization is a share; 0 where it is not known here.
        source: Where each known figure comes from, in this order, separated by ";".
    """

    name: str
    listed_mib: int
    cuda_mib: int
    source: str

    @property
    def total(self) -> int:
        """Bytes that a program can have at the most; a little too many (up to 1.5 %) where only nvidia-smi's figure is known."""
        return (self.cuda_mib or self.listed_mib) * MIB


GPUS = (
    Gpu("A10", 23_028, 22_712, f"{_MODAL}; OpenBMB/MiniCPM-V#640"),
    Gpu("A10G", 23_028, 0, "NVIDIA/TensorRT-LLM#7818"),
    Gpu("A100 40GB", 40_960, 40_339, f"{_MODAL}; bottlerocket-os/bottlerocket#3873"),
    Gpu("A100 80GB", 81_920, 0, _MODAL),
    Gpu("B200", 0, 182_630, "pytorch/ao#4002"),
    Gpu("H100 80GB", 81_559, 0, "baselines/nvidia-h100-80gb-hbm3-x1"),
    Gpu("H200", 143_771, 143_155, "baselines/nvidia-h200-x1; vLLM's 138,101,089,895 bytes there are 0.92 of it"),
    Gpu("L4", 23_034, 0, _MODAL),
    Gpu("L40S", 46_068, 45_599, f"{_MODAL}; vllm-project/vllm#15598"),
    Gpu("RTX 3090", 24_576, 0, "noonghunna/club-3090#1127"),
    Gpu("RTX 4090", 24_564, 24_218, "vllm-project/vllm#7553; 23.65 GiB in vLLM's own examples"),
    Gpu("RTX 5090", 32_607, 0, "noonghunna/club-3090#1261"),
    Gpu("T4", 15_360, 0, _MODAL),
)
"""Sorted by name. Sources are GitHub threads that show the figure, or records of this project."""

LISTED_BUT_KEPT = max(1 - gpu.cuda_mib / gpu.listed_mib for gpu in GPUS if gpu.cuda_mib and gpu.listed_mib)
"""The largest share of nvidia-smi's total that CUDA does not give to programs, of the cards of which both are known: 1.5 %."""

_NOISE = ("nvidia", "geforce", "tesla", "sxm5", "sxm4", "sxm", "hbm3e", "hbm3", "pcie")


def find_gpu(name: str) -> Gpu:
    """The card of this name, in the words of nvidia-smi or of people: "NVIDIA H100 80GB HBM3" and "h100" are both "H100 80GB".

    Raises:
        InvalidSpecError: a name that no card has, or that several have, with the closest match.
    """
    wanted = _words(name)
    if wanted:
        exact = [gpu for gpu in GPUS if "".join(_words(gpu.name)) == "".join(wanted)]
        found = exact or [gpu for gpu in GPUS if _words(gpu.name)[: len(wanted)] == wanted]
        if len(found) == 1:
            return found[0]
    raise InvalidSpecError("GPU", name, [gpu.name for gpu in GPUS])


def _words(name: str) -> list[str]:
    words = name.lower().replace("-", " ").replace(" gb", "gb").split()
    return [word for word in words if word not in _NOISE]
