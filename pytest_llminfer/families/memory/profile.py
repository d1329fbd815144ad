"""The profile of a cell's memory: what the configuration predicts, what was measured, and whether each line is within its gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.families.memory.check import ABSOLUTE_BYTES, either_way, weights_tolerance
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.observations.kv_cache import KVPool
    from pytest_llminfer.observations.memory import MemoryReport

_MEASURED_ONLY = (
    ("activation peak", "activation_peak_bytes"),
    ("graphs", "graphs_bytes"),
    ("graphs, as expected", "graphs_estimate_bytes"),
    ("non-torch", "non_torch_bytes"),
    ("load peak", "load_peak_bytes"),
    ("run peak", "run_peak_bytes"),
)
"""Lines that no configuration predicts: they are shown, and the peaks are judged by a record."""


@dataclass(frozen=True, slots=True)
class ProfileLine:
    """One line of a memory profile.

    Attributes:
        line: What it counts, as the table shows it.
        predicted: From the configuration, in ``unit``; None where nothing predicts it.
        measured: By the engine or the framework, in ``unit``.
        tolerance: Allowed difference either way, in ``unit``; None for a line that is shown and not judged.
        unit: ``bytes`` or ``tokens``.
    """

    line: str
    predicted: int | None
    measured: int
    tolerance: int | None = None
    unit: str = "bytes"

    @property
    def difference(self) -> int | None:
        """Measured less predicted."""
        return None if self.predicted is None else self.measured - self.predicted

    @property
    def within(self) -> bool:
        """Whether the line is within its gate; a line without one always is."""
        return self.tolerance is None or self.difference is None or abs(self.difference) <= self.tolerance

    @property
    def limit(self) -> int | None:
        """The largest or smallest value within the gate, on the side of what was measured; None without one."""
        if self.tolerance is None or self.predicted is None:
            return None
        return either_way(self.measured - self.predicted, self.predicted, self.tolerance)

    @property
    def gate(self) -> str:
        """The gate as text."""
        if self.tolerance is None or self.predicted is None:
            return "shown"
        return "exact" if not self.tolerance else f"±{self.tolerance:,}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report and a record."""
        return {
            "line": self.line,
            "unit": self.unit,
            "predicted": self.predicted,
            "measured": self.measured,
            "difference": self.difference,
            "gate": self.gate,
            "within": self.within,
        }


def pinned_capacity(*, resolved: Mapping[str, Any], pool: KVPool, rank_bytes_per_token: int) -> int | None:
    """Tokens that a pool must hold where its size was given and not left to the engine; None where it was left.

    resolved: the settings in force. vLLM: ``num_gpu_blocks_override`` blocks, or ``kv_cache_memory_bytes`` of a rank in whole
    blocks, one of which it keeps to itself. SGLang: ``max_total_tokens`` in whole pages.
    """
    size = pool.block_size
    if not size:
        return None
    if blocks := resolved.get("num_gpu_blocks_override"):
        return (int(blocks) - 1) * size
    if pinned := resolved.get("kv_cache_memory_bytes"):
        return (int(pinned) // (size * rank_bytes_per_token) - 1) * size
    if tokens := resolved.get("max_total_tokens"):
        return int(tokens) // size * size
    return None


def profile_lines(
    *,
    report: MemoryReport,
    weights: int,
    buffers: int,
    pool: KVPool | None = None,
    bytes_per_token: int = 0,
    capacity: int | None = None,
    rank_bytes_per_token: int = 0,
    allocated: int | None = None,
) -> tuple[ProfileLine, ...]:
    """The lines of one cell, of the fullest rank; the pool is that of a whole replica.

    weights, buffers: predicted bytes of a rank. bytes_per_token: predicted, over all ranks of a replica, rank_bytes_per_token of
    one of them. capacity: predicted tokens, where the pool is pinned. allocated: bytes that PyTorch's allocator should count for
    a rank's weights and buffers, each tensor taken by itself; None where they are not taken so.
    """
    tolerance = weights_tolerance(weights)
    lines = [
        ProfileLine("weights", weights, report.weights_bytes, tolerance),
        # What an engine registers beside its weights has 8 MiB, whatever the model's size (docs/methods.md#memory-gates).
        ProfileLine("buffers", buffers, report.buffers_bytes, max(tolerance, ABSOLUTE_BYTES)),
    ]
    if pool is not None:
        tokens = pool.capacity_tokens if capacity is None else capacity
        lines += [
            ProfileLine("KV bytes a token", bytes_per_token, pool.bytes_per_token, 0),
            ProfileLine("KV capacity", capacity, pool.capacity_tokens, 0, unit="tokens"),
            # One block more is the engine's own.
            ProfileLine("KV pool", tokens * bytes_per_token, pool.stored_bytes, pool.block_size * bytes_per_token),
        ]
    if report.engine_weights_bytes is not None:
        judged = None if allocated is None else tolerance
        lines.append(ProfileLine("weights, as allocated", allocated, report.engine_weights_bytes, judged))
    if pool is not None and report.requested_bytes and report.accounted_bytes:
        # total x utilization = weights + non-torch + activation peak + graphs + pool, in whole blocks
        # (docs/methods.md#share-of-the-device).
        block = pool.block_size * rank_bytes_per_token
        lines.append(ProfileLine("share of the device", report.requested_bytes, report.accounted_bytes, block))
    found = ((name, getattr(report, field)) for name, field in _MEASURED_ONLY)
    return (*lines, *(ProfileLine(name, None, value) for name, value in found if value is not None))


def check_profile(*, lines: Sequence[ProfileLine]) -> Verdict:
    """Whether every line that can be predicted is within its gate, too small being as wrong as too large."""
    judged = [line for line in lines if line.gate != "shown"]
    outside = [line for line in judged if not line.within]
    details = [_deviation(line) for line in outside] if judged else ["nothing was compared: no line could be predicted"]
    return Verdict(
        outcome=Outcome.FAIL if details else Outcome.PASS,
        claim="every line of memory is what the configuration predicts",
        key=f"{len(judged) - len(outside)}/{len(judged)} lines",
        measurements=tuple(
            Measurement(
                line.line,
                line.measured,
                line.unit,
                1,
                f"predicted {line.predicted:,}, gate {line.gate}",
                line.predicted,
                line.limit,
            )
            for line in judged
        ),
        threshold="each line within its gate: " + ", ".join(f"{line.line} {line.gate}" for line in judged),
        threshold_source="max(0.3 %, 8 MiB) for weights, exact for keys and values of a pinned pool (docs/methods.md#memory-gates)",
        smallest_detectable="a byte or a token on exact lines; the gate on the others",
        advice="weights: see the layout check. KV: look at the pool's dtype, and at what else took memory before it was sized",
        details=tuple(details),
    )


def _deviation(line: ProfileLine) -> str:
    difference = line.difference or 0
    share = f" ({100 * difference / line.predicted:+.2f} %)" if line.predicted else ""
    direction = "more" if difference > 0 else "less"
    return f"{line.line}: {abs(difference):,} {line.unit} {direction} than the predicted {line.predicted:,}{share}"
