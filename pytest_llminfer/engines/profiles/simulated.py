"""A small NumPy model with injectable faults, for tests of the harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.engines.profiles.base import FULL, LOOP, Installation, Profile
from pytest_llminfer.predict.buffers import positions
from pytest_llminfer.predict.rules import Storage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.models.shape import ModelShape

_FLOAT = 4


def _rotary_bytes(config: Mapping[str, Any], shape: ModelShape, _dtype: str, _on_gpu: bool) -> int:  # noqa: FBT001 - the rule's signature
    """Cosines and sines in fp32, of one position more than config.json allows."""
    return (positions(config) + 1) * shape.head_dim * _FLOAT


_FAULTS = (
    "fault",
    "fault_after",
    "fault_bytes",
    "fault_dtype",
    "fault_factor",
    "fault_rate",
    "server_fault",
    "server_fault_seconds",
)

PROFILE = Profile(
    name="simulated",
    backend="pytest_llminfer.worker.backends.simulated.backend:SimulatedBackend",
    takes_gpus=False,
    for_tests=True,
    capabilities=FULL | LOOP | {"trace"},
    dummy_weights="host",
    # A fault is injected to be found, so no record may tell that it is there.
    operational_args=frozenset(_FAULTS),
    repacks=False,
    storage=Storage(),
    rotary_bytes=_rotary_bytes,
    installation=Installation(modules=("numpy",), attribute="numpy:ndarray", packages=("numpy",), extra=False),
)
