"""What predictions need to know of one engine; what its profile leaves out raises UnsupportedError."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any

    from pytest_llminfer.models.shape import ModelShape

    RotaryBytes = Callable[[Mapping[str, Any], ModelShape, str, bool], int]
    """(config.json, shape, dtype, whether on a GPU) → bytes of the tables of rotary positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How an engine holds the weights of a model.

    Attributes:
        gguf: Whether in the types that llama.cpp's mixtures give them; the other fields then do not apply.
        fused: Name of a matrix to the linears that it joins, each rank's parts of them one below the other; empty for none.
        vocabulary_block: The vocabulary is padded to a multiple of this before it is split over ranks; 1 for no padding.
        formats: The TOML file that declares how linears are stored in each quantization; None where that is not known.
        nested_scales: Formats of bitsandbytes whose absolute maxima are quantized too, unless an option says otherwise.
    """

    gguf: bool = False
    fused: Mapping[str, Collection[str]] = field(default_factory=dict)
    vocabulary_block: int = 1
    formats: Path | None = None
    nested_scales: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitting:
    """How an engine splits a model over ranks.

    Attributes:
        roles: Roles of weights that are split over a tensor-parallel group; every rank holds all others whole. Empty where the
            engine has no tensor parallelism.
        plan: Roles that are split too where the engine's own plan names the module, since versions differ.
        every_stage: Architecture to the roles that each stage of a pipeline holds, where other architectures have them on one stage
            only.
        tied_stages: Whether a pipeline is known to keep an embedding that is also the output matrix on its first and its last
            stage.
    """

    roles: Collection[str]
    plan: Collection[str] = ()
    every_stage: Mapping[str, Collection[str]] = field(default_factory=dict)
    tied_stages: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSharing:
    """How an engine shares out the memory of a device.

    Attributes:
        utilization: The share that it takes by default, above 0 and at most 1.
        of_free: Whether the share is of what is free when the engine looks, with activations and graphs outside of it, instead of
            the total.
        allocator: Whether weights are tensors of PyTorch's CUDA allocator, which rounds each of them up.
        kv_dtypes: What it can keep keys and values in, beside the model's own dtype.
        kv_dtype: What it keeps them in by default; empty for the model's dtype.
        windows: Whether it discards what lies behind a sliding window.
        block_tokens: Tokens of a block of its pool.
        reserved_blocks: Blocks that it keeps for itself.
        in_flight: Whether blocks behind a window are kept until the scheduled batches have been computed.
    """

    utilization: float
    of_free: bool = False
    allocator: bool = True
    kv_dtypes: Collection[str] = ()
    kv_dtype: str = ""
    windows: bool = False
    block_tokens: int = 1
    reserved_blocks: int = 0
    in_flight: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineRules:
    """What predictions need to know of one engine, or of a kind of file that holds weights.

    A field that is None is not known; needing it raises UnsupportedError, which is a visible skip.

    Attributes:
        name: Of the engine as in ``--engine``, or of the kind of file (``checkpoint``, ``gguf``).
        storage: How weights are held; without it, no layout and no bytes of weights are predicted.
        splitting: How a model is split over ranks; without it, nothing is predicted of a model on more than one.
        rotary_bytes: Computes the bytes of the tables of rotary positions; without it, memory beside the weights is not predicted.
        sharing: How a device is shared out; without it, no memory plan is made.
    """

    name: str
    storage: Storage | None = None
    splitting: Splitting | None = None
    rotary_bytes: RotaryBytes | None = None
    sharing: DeviceSharing | None = None

    def unsaid(self, name: str, what: str) -> UnsupportedError:
        """The error for a field that is unset: ``what`` is not known of this engine."""
        return UnsupportedError(f"{what} is not known here", f"its profile has to say it: {name!r} of {self.name}")


def storage_of(engine: EngineRules) -> Storage:
    """How an engine holds weights.

    Raises:
        UnsupportedError: its profile does not say.
    """
    if engine.storage is None:
        raise engine.unsaid("storage", f"how {engine.name} holds weights")
    return engine.storage


SAFETENSORS = EngineRules(name="checkpoint", storage=Storage(formats=Path(__file__).with_name("declared_formats.toml")))
"""The weights of a folder of safetensors files."""
GGUF = EngineRules(name="gguf", storage=Storage(gguf=True))
"""The weights of a GGUF file."""
FILES = {each.name: each for each in (SAFETENSORS, GGUF)}
"""What holds a checkpoint on disk, by ``StoredModel.holder``."""
