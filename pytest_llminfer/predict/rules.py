"""What predictions need to know of one engine; what is not said of it raises UnsupportedError, and no other engine's rule is
taken.
"""

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

    gguf: in the types that llama.cpp's mixtures give them; the other fields are then of no account.
    fused: linears that are one matrix there, each rank's parts of them one below the other: its name → theirs.
    vocabulary_block: the vocabulary is filled up to a multiple of this, before it is dealt to ranks.
    formats: the TOML file that declares how the linears are stored in each quantization; None: quantized weights are not known.
    nested_scales: formats of bitsandbytes whose absolute maxima are quantized too, unless an option says otherwise.
    """

    gguf: bool = False
    fused: Mapping[str, Collection[str]] = field(default_factory=dict)
    vocabulary_block: int = 1
    formats: Path | None = None
    nested_scales: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitting:
    """How an engine splits a model over ranks.

    roles: roles of weights that are dealt to the ranks of a tensor-parallel group; all others are held whole by every rank. None at
    all: the engine has no tensor parallelism. plan: roles that are dealt too where the engine's own plan, which it tells, names
    the module: versions differ. every_stage: architecture → roles that each stage of a pipeline holds, of which others have one.
    tied_stages: whether it is known where a pipeline keeps an embedding that is the output matrix too: on first and last stage.
    """

    roles: Collection[str]
    plan: Collection[str] = ()
    every_stage: Mapping[str, Collection[str]] = field(default_factory=dict)
    tied_stages: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSharing:
    """How an engine shares out the memory of a device.

    utilization: the share that it takes unless told otherwise, above 0 and at most 1. of_free: the share is of what is free when
    the engine looks, with activations and graphs outside of it, and not of the total. allocator: weights are tensors of PyTorch's
    CUDA allocator, which rounds each of them up. kv_dtypes: what it keeps keys and values in, beside the model's own dtype.
    kv_dtype: what it keeps them in unless told otherwise; "" for the model's dtype. windows: whether it forgets what lies behind a
    sliding window. block_tokens: tokens of a block of its pool. reserved_blocks: blocks that it keeps to itself. in_flight:
    whether blocks behind a window are kept until the batches that are scheduled have been computed.
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
    """One engine, or a kind of file that holds weights, by its ``name``. A field that is None is not said.

    storage: how weights are held; unset, no layout and no bytes of weights are predicted.
    splitting: how a model is split over ranks; unset, nothing is predicted of a model on more than one.
    rotary_bytes: what tables of rotary positions take; unset, memory beside the weights is not predicted.
    sharing: how a device is shared out; unset, no memory plan is made.
    Each of them raises UnsupportedError where it is needed and unset: a visible skip.
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
