"""How engines share out a device: ``total x utilization = weights + non-torch + activation peak + graphs + KV pool``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_llminfer.memory_model.allocator import MIB

UTILIZATION = {"vllm": 0.92, "sglang": 0.88, "transformers": 1.0, "llamacpp": 1.0}
"""What an engine takes of a device unless it is told otherwise. vLLM's was 0.90 before 0.21 (METHODS 4.1)."""

CONTEXT_BYTES = 512 * MIB
"""A CUDA context and its libraries: 300 to 600 MiB are seen (METHODS 4.3); engines count it as non-torch memory."""


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """The bytes of one device. total: what the driver gives, ``torch.cuda.mem_get_info()[1]``, not what the card is sold with.

    graphs: captured CUDA graphs, which vLLM takes out of the pool since 0.21 and did not before: 0 stands for that.
    """

    total: int
    utilization: float
    weights: int
    non_torch: int = 0
    activation_peak: int = 0
    graphs: int = 0

    @property
    def usable(self) -> int:
        """What the engine may take: ``ceil(total x utilization)``."""
        return math.ceil(self.total * self.utilization)

    @property
    def kv_pool(self) -> int:
        """What is left for keys and values; negative where the rest alone does not fit."""
        return self.usable - self.weights - self.non_torch - self.activation_peak - self.graphs

    @property
    def fits(self) -> bool:
        """Whether anything is left for keys and values."""
        return self.kv_pool > 0


def sglang_pool(*, free_before: int, free_after: int, mem_fraction_static: float) -> int:
    """Bytes of SGLang's KV pool: ``free after loading - free before x (1 - mem_fraction_static)``.

    Weights and pool share the static fraction; activations and graphs live in the rest. Both are free-memory readings of the
    device, in bytes.
    """
    return free_after - math.ceil(free_before * (1 - mem_fraction_static))
