"""How engines share out a device: ``total x utilization = weights + non-torch + activation peak + graphs + KV pool``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_llminfer.predict.allocator import MIB

CONTEXT_BYTES = 512 * MIB
"""A CUDA context and its libraries take 300 to 600 MiB, which engines count as non-torch (docs/methods.md#share-of-the-device)."""


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """The bytes of one device, as an engine shares them out.

    Attributes:
        total: What the driver gives, ``torch.cuda.mem_get_info()[1]``, not what the card is sold with.
        utilization: The share that the engine may take, above 0 and at most 1.
        weights: Weights with their quantization state, and the tables that the model registers beside them.
        non_torch: What the device holds outside PyTorch's allocator, such as the CUDA context.
        activation_peak: Activations of the largest batch.
        graphs: Captured CUDA graphs where the engine takes them out of the pool, as vLLM's first model runner does since 0.21; 0
            where they come on top.
        before: In use when the engine looks, where its share is of what is free then (SGLang); 0 where it is of the total.
    """

    total: int
    utilization: float
    weights: int
    non_torch: int = 0
    activation_peak: int = 0
    graphs: int = 0
    before: int = 0

    @property
    def usable(self) -> int:
        """What the engine may take: ``ceil((total - before) x utilization)``.

        SGLang's pool is ``free after loading - free before x (1 - mem_fraction_static)``, which is the same: weights and pool share
        the static fraction, activations and graphs live in the rest.
        """
        return math.ceil((self.total - self.before) * self.utilization)

    @property
    def kv_pool(self) -> int:
        """What is left for keys and values; negative where the rest alone does not fit."""
        return self.usable - self.weights - self.non_torch - self.activation_peak - self.graphs

    @property
    def fits(self) -> bool:
        """Whether anything is left for keys and values."""
        return self.kv_pool > 0
