"""Muon: momentum whose matrix updates are orthogonalized by a Newton-Schulz iteration.

After Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Matrices of one shape are orthogonalized
together in one batch, because a small model has dozens of small ones and the kernel launches would dominate.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, chosen in the source for the steepest slope at zero."""


def orthogonalize(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Move the singular values of a batch of matrices, shape (batch, rows, columns), to about one.

    The iteration runs in bfloat16 where there is a GPU, which is precise enough, and in float32 elsewhere.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for two-dimensional parameters.

    An update is scaled by ``sqrt(max(1, rows / columns))``, so that one learning rate suits every shape.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient; a closure is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._step_shape(shape, parameters, lr=group["lr"], momentum=group["momentum"])

    def _step_shape(self, shape: torch.Size, parameters: list[torch.nn.Parameter], *, lr: float, momentum: float) -> None:
        gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        state = self.state[parameters[0]]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradients)
        average = state["momentum"]
        average.lerp_(gradients, 1 - momentum)
        updates = orthogonalize(gradients.lerp(average, momentum))
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-lr * scale)
