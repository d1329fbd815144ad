"""What an engine answers, as plain data: the input of every check. Standard library only.

Arrays are NumPy arrays where a field says so; NumPy itself is not imported, so that a session without an engine never pays.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


class FromMessage:
    """Build from a worker's message; fields that this version does not know are left out."""

    __slots__ = ()

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """Build from a worker's message."""
        names = {entry.name for entry in fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: _frozen(value) for name, value in message.items() if name in names})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Sampling(FromMessage):
    """How tokens are chosen. Every field is always sent: engines differ in the defaults they read from a model.

    ``temperature`` 0 is greedy; ``top_k`` -1 keeps all tokens; ``stop_token_ids`` come on top of the model's end tokens,
    which ``ignore_eos`` switches off (for fixed output lengths).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a message, and for a baseline's fingerprint."""
        return {
            entry.name: list(value) if isinstance(value := getattr(self, entry.name), tuple) else value for entry in fields(self)
        }


@dataclass(frozen=True, slots=True)
class Generation(FromMessage):
    """One prompt's answer. T is the number of generated tokens, the end token included where one was produced.

    finish_reason: ``stop`` (an end token) or ``length`` (the limit).
    top_ids (T, k) int32 and top_logprobs (T, k) float32: the k most likely tokens of each step, nats, most likely first;
    None unless asked for. max_logit (T,) float32: the largest absolute logit of each step, which sets the size of a rounding step.
    cached_tokens: prompt tokens that came from a prefix cache; None where the engine does not say.
    """

    token_ids: tuple[int, ...]
    finish_reason: str
    text: str | None = None
    top_ids: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None
    max_logit: np.ndarray | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Scores(FromMessage):
    """What an engine makes of the last T tokens of a given sequence, each predicted from all before it (teacher forcing).

    logprobs (T,) float32: of the given tokens, nats. top_ids (T, k) int32 and top_logprobs (T, k) float32: the k most likely
    tokens of each position, most likely first.
    """

    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray


@dataclass(frozen=True, slots=True)
class Parameter(FromMessage):
    """One stored tensor of the loaded model.

    shape: of the weight it stands for, (out, in) for a linear; stored_shape: of the tensor that holds it, packed or not.
    dtype: of that tensor, in torch's words ("bfloat16", "int8", "uint8"). stored_bytes: the tensor with all its quantization
    state (scales, absolute maxima, codebooks); state_bytes: that state alone; state: dtype and bytes of each of its tensors, empty
    where the engine does not say. packing: "" or the format that the engine names ("nf4", "fp4", "int8"). double_quantized:
    whether the scales are quantized too; None where that has no meaning. content: a hash of the tensor's bytes, of a model that is
    spread over ranks; "" where a library of the CPU holds them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    stored_bytes: int
    state_bytes: int = 0
    packing: str = ""
    block_size: int | None = None
    double_quantized: bool | None = None
    device: str = "cpu"
    state: tuple[tuple[str, int], ...] = ()
    content: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """Every stored tensor once, and the pairs of names that share one: of a whole model, or of the rank that is named."""

    parameters: tuple[Parameter, ...]
    tied: tuple[tuple[str, str], ...]
    tp_rank: int = 0
    pp_rank: int = 0

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Layout:
        """Build from a worker's message."""
        return cls(
            parameters=tuple(Parameter.from_message(entry) for entry in message["parameters"]),
            tied=tuple((first, second) for first, second in message["tied"]),
            tp_rank=int(message.get("tp_rank", 0)),
            pp_rank=int(message.get("pp_rank", 0)),
        )

    @classmethod
    def of_ranks(cls, message: Mapping[str, Any]) -> tuple[Layout, ...]:
        """One of each rank of a worker's model, by pipeline and tensor rank."""
        ranks = (cls.from_message(rank) for rank in message.get("ranks", [message]))
        return tuple(sorted(ranks, key=lambda rank: (rank.pp_rank, rank.tp_rank)))


@dataclass(frozen=True, slots=True)
class MemoryReport(FromMessage):
    """Bytes by category, on the device that holds the model.

    weights_bytes: parameters and quantization state, each storage once. buffers_bytes: what else the model registers (RoPE tables).
    live_bytes: everything that the framework holds right now (CUDA: the allocator; CPU: all live tensors).
    load_peak_bytes, run_peak_bytes: the highest use while loading, and since the last reset, above what was in use
    before loading. measured_by: how the peaks were read ("torch allocator", "process resident set"), with what resolution_bytes.
    Where an engine keeps books of its own, in bytes of one device, None where it does not: kv_pool_bytes (keys and values, taken
    in advance), activation_peak_bytes (of its profiling run), graphs_bytes (captured graphs), graphs_estimate_bytes (what it
    expected of them), non_torch_bytes (what the device holds beside the framework's allocator), engine_weights_bytes (what
    loading the model took of the allocator, its rounding included), requested_bytes (the part of the device that it may take),
    accounted_bytes (what it has shared out of that). Over several ranks every figure is that of the rank with the most.
    """

    device: str
    weights_bytes: int
    buffers_bytes: int
    live_bytes: int
    load_peak_bytes: int
    run_peak_bytes: int
    measured_by: str
    resolution_bytes: int
    kv_pool_bytes: int | None = None
    activation_peak_bytes: int | None = None
    graphs_bytes: int | None = None
    non_torch_bytes: int | None = None
    graphs_estimate_bytes: int | None = None
    engine_weights_bytes: int | None = None
    requested_bytes: int | None = None
    accounted_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class KVPool(FromMessage):
    """The paged KV cache that an engine takes in advance.

    num_blocks blocks of block_size tokens hold capacity_tokens at once; a block that the engine keeps to itself is not among
    them, but its bytes are. dtype: in torch's
    words. stored_bytes: of the pool's tensors over all layers and ranks of one replica; bytes_per_token: the same, of one token.
    max_model_len: the longest sequence. max_concurrency: how many of those the engine says it has room for; None where it says
    nothing.
    """

    num_blocks: int
    block_size: int
    capacity_tokens: int
    dtype: str
    stored_bytes: int
    bytes_per_token: int
    max_model_len: int
    max_concurrency: float | None = None


@dataclass(frozen=True, slots=True)
class CacheCounters(FromMessage):
    """What an engine counted since it was loaded; None where it does not say.

    preemptions: requests that lost their cache to others and were computed anew. prefix_queries, prefix_hits: prompt tokens that
    were looked up in the prefix cache, and that were found.
    """

    preemptions: int | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None


@dataclass(frozen=True, slots=True)
class Rank(FromMessage):
    """One process that holds a part of the model.

    name: as the engine or the operating system calls the process. device: "cpu", or the exact id of its accelerator.
    weights_bytes: what it holds of the parameters.
    """

    pid: int
    name: str
    device: str
    weights_bytes: int
    tp_rank: int = 0
    pp_rank: int = 0
    dp_rank: int = 0


@dataclass(frozen=True, slots=True)
class CacheLayer(FromMessage):
    """Keys and values of one layer: shapes (batch, kv_heads, length, head_dim), bytes of both together."""

    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    dtype: str
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class CacheReport:
    """The KV cache after a prompt, and what happened to it while the generation went on.

    prompt_tokens: its length; extended_tokens: how many tokens were decoded after the snapshot.
    layers: right after the prompt; extended_layers: after decoding.
    prefix_differences: per layer, the largest absolute difference between the snapshot and the same positions afterwards,
    keys and values (0.0 means bit-equal).
    """

    prompt_tokens: int
    extended_tokens: int
    layers: tuple[CacheLayer, ...]
    extended_layers: tuple[CacheLayer, ...]
    prefix_differences: tuple[tuple[float, float], ...]

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> CacheReport:
        """Build from a worker's message."""
        return cls(
            prompt_tokens=message["prompt_tokens"],
            extended_tokens=message["extended_tokens"],
            layers=tuple(CacheLayer.from_message(layer) for layer in message["layers"]),
            extended_layers=tuple(CacheLayer.from_message(layer) for layer in message["extended_layers"]),
            prefix_differences=tuple((float(keys), float(values)) for keys, values in message["prefix_differences"]),
        )


@dataclass(frozen=True, slots=True)
class Calibration(FromMessage):
    """What the device can do right now, measured beside the engine: the yardstick of a throughput.

    matmul_flops_per_second: a large matrix product in the cell's dtype; copy_bytes_per_second: a large copy, bytes read plus
    bytes written; python_loops_per_second: a fixed interpreter loop, since small models are bound by the host.
    """

    matmul_flops_per_second: float
    copy_bytes_per_second: float
    python_loops_per_second: float


@dataclass(frozen=True, slots=True)
class EngineInfo(FromMessage):
    """What was loaded, as the worker resolved it.

    dtype, kv_dtype: resolved, never ``auto``. device: "cpu" or "cuda"; device_name: the exact name of the processor or
    accelerator. capabilities: the requests that this engine answers. versions: engine, framework, driver. load_seconds by phase.
    """

    dtype: str
    kv_dtype: str
    device: str
    device_name: str
    device_count: int
    capabilities: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)
    load_seconds: dict[str, float] = field(default_factory=dict)
    end_token_ids: tuple[int, ...] = ()
