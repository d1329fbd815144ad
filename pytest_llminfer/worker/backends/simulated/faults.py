"""What can be made to go wrong, for real: the negative control of every check."""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.errors import BadInputError, OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from pytest_llminfer.worker.backends.simulated.kv_cache import KVCache
    from pytest_llminfer.worker.backends.simulated.weights import Weights

FAULTS = {
    "drop_kv_block": "16 tokens of one layer's keys and values are zeroed after the prompt",
    "shift_positions": "positions are one too high after the prompt",
    "overwrite_prefix": "each decoded token overwrites an earlier value in one layer's cache",
    "change_dtype": "one layer's matrix is stored as fault_dtype",
    "swap_answers": "a share fault_rate of the answers goes to other prompts of the request",
    "alter_answers": "a share fault_rate of the answers has another last word",
    "drop_answer": "the last answer of the request is missing",
    "leak": "fault_bytes are kept for ever at every generate request",
    "slow": "generation takes fault_factor times as long",
    "slow_kernels": "the accelerator takes fault_factor times as long, by the simulated clock",
    "slow_clocks": "the same, and so it does for whatever else it is asked",
    "add_kernels": "the accelerator runs more kernels, which take no time",
    "slow_host": "the host takes fault_factor times as long for a step, by the simulated clock",
    "other_host": "the same, and so it does for a frozen step",
    "lost_graph": "kernels are launched one by one, and the host takes fault_factor times as long",
    "crash": "the process dies of SIGSEGV in generate",
    "exit": "the process exits with status 3 in generate",
    "hang": "generate never answers",
    "hang_in_load": "loading never ends",
    "out_of_memory": "generate asks for more memory than there is",
    "fat_cache": "keys and values are stored as float64",
    "move_default": "an engine argument that is not given has half its default",
}
BLOCK = 16
EXIT_STATUS = 3
_IMPOSSIBLE_BYTES = 1 << 62
_DTYPES = ("float16", "float64")


@dataclass(slots=True)
class Faults:
    """One fault at most, and when it acts.

    Only what the engine computes for itself is hit: cache path ``engine``, ``score_top``, its cache, its stored weights. The cache
    paths ``loop`` and ``no_cache`` and the scores by prefill stay right, as the reference to compare with.

    Attributes:
        name: A key of ``FAULTS``; empty for none.
        rate: Share of the answers that are altered or swapped, 0 to 1.
        bytes: Bytes that ``leak`` keeps at every request.
        factor: How many times as long ``slow`` takes.
        dtype: What ``change_dtype`` stores a matrix as, ``float16`` or ``float64``.
        after: How many requests (generate, score, kv_cache) are answered correctly first.
        requests: How many requests have begun.
        leaked: What ``leak`` has kept so far.
    """

    name: str = ""
    rate: float = 0.1
    bytes: int = 1 << 20
    factor: float = 2.0
    dtype: str = "float16"
    after: int = 0
    requests: int = 0
    leaked: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def read(cls, engine_args: Mapping[str, Any]) -> Self:
        """From ``fault``, ``fault_rate``, ``fault_bytes``, ``fault_factor``, ``fault_dtype`` and ``fault_after``.

        Raises:
            BadInputError: an unknown argument, fault or dtype, or a value of another kind.
        """
        arguments = {"fault": "name", **{f"fault_{name}": name for name in ("rate", "bytes", "factor", "dtype", "after")}}
        values: dict[str, Any] = {}
        for given, value in engine_args.items():
            if given not in arguments:
                raise BadInputError(
                    f"unknown engine argument {given!r} for the simulated engine; "
                    f"valid: {', '.join(arguments)}, max_batch_tokens, accelerator"
                )
            kind = type(getattr(cls(), arguments[given]))
            if not isinstance(value, (int, float) if kind is float else kind):
                raise BadInputError(f"{given} must be a {kind.__name__}, not {value!r}")
            values[arguments[given]] = value
        faults = cls(**values)
        if faults.name and faults.name not in FAULTS:
            raise BadInputError(f"unknown fault {faults.name!r}; valid: {', '.join(FAULTS)}")
        if faults.dtype not in _DTYPES:
            raise BadInputError(f"unknown fault_dtype {faults.dtype!r}; valid: {', '.join(_DTYPES)}")
        faults.strike_in_load()
        return faults

    def strike_in_load(self) -> None:
        """Never return, and say so in the log first."""
        if self.name == "hang_in_load":
            sys.stderr.write("loading hangs\n")
        while self.name == "hang_in_load":
            time.sleep(3600)

    def default(self, value: int) -> int:
        """What an engine argument with this default is where it is not given."""
        return value // 2 if self.name == "move_default" else value

    def begin_request(self) -> None:
        """Count a request; the fault acts once ``after`` of them have begun before."""
        self.requests += 1

    def active(self, name: str) -> bool:
        """Whether this fault acts on the request that has begun."""
        return self.name == name and self.requests > self.after

    def strike(self) -> None:
        """In generate: end the process, never return, ask for too much, or keep memory.

        Raises:
            OutOfMemoryError: the fault ``out_of_memory``.
        """
        if self.active("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.active("exit"):
            os._exit(EXIT_STATUS)
        while self.active("hang"):
            time.sleep(3600)
        if self.active("out_of_memory"):
            try:
                np.empty(_IMPOSSIBLE_BYTES, np.uint8)
            except MemoryError as error:
                raise OutOfMemoryError(f"out of memory while generating: {error}") from error
        if self.active("leak"):
            self.leaked.append(np.ones(self.bytes, np.uint8))

    def stretch(self, name: str) -> float:
        """What seconds are multiplied with while this fault acts: ``factor``, otherwise 1."""
        return self.factor if self.active(name) else 1.0

    def linger(self, seconds: float) -> None:
        """Take ``factor`` times as long as the ``seconds`` that the work took."""
        if self.active("slow"):
            time.sleep(max(self.factor - 1, 0) * seconds)

    def after_prompt(self, cache: KVCache) -> None:
        """Damage the cache that the prompt has left."""
        if self.active("drop_kv_block"):
            layer = _early_layer(cache)
            start = int(cache.lengths.min()) // 3 // BLOCK * BLOCK
            cache.keys[layer][:, :, start : start + BLOCK] = 0
            cache.values[layer][:, :, start : start + BLOCK] = 0

    def position_shift(self) -> int:
        """What is added to the positions of decoded tokens."""
        return int(self.active("shift_positions"))

    def after_step(self, cache: KVCache) -> None:
        """Damage the cache after one token was decoded."""
        if self.active("overwrite_prefix"):
            values = cache.values[_early_layer(cache)]
            rows = np.arange(len(cache.lengths))
            values[rows, :, cache.lengths // 3] = values[rows, :, cache.lengths - 1]

    def cache_dtype(self) -> np.dtype[Any]:
        """How keys and values are stored."""
        return np.dtype(np.float64 if self.active("fat_cache") else np.float32)

    def store(self, weights: Weights) -> None:
        """Change how one matrix is stored, once the fault acts; a fault without ``after`` is there from the start."""
        name = next((name for name in weights if name.endswith(".1.mlp.down_proj.weight")), "")
        if name and (self.active("change_dtype") or (self.name == "change_dtype" and self.after == 0)):
            weights[name] = weights[name].astype(self.dtype)

    def change_answers(self, outputs: list[dict[str, Any]], prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
        """Drop the last answer, or alter or swap a share of them; which ones depends on the prompts alone."""
        if self.active("drop_answer"):
            outputs.pop()
        if not (self.active("alter_answers") or self.active("swap_answers")):
            return
        struck = [number for number, prompt in enumerate(prompts) if _uniform(prompt) < self.rate]
        if self.active("alter_answers"):
            for number in struck:
                tokens = outputs[number]["token_ids"]
                place = max(len(tokens) - 1 - (outputs[number]["finish_reason"] == "stop"), 0)
                tokens[place] = (tokens[place] + 1) % vocab_size
            return
        if len(struck) == 1 and len(prompts) > 1:
            struck.append((struck[0] + 1) % len(prompts))
        moved = [outputs[number] for number in struck]
        for number, output in zip(struck, moved[1:] + moved[:1], strict=True):
            outputs[number] = output


def _early_layer(cache: KVCache) -> int:
    """The second layer: what happens late in a small model may change nothing that anyone could see."""
    return min(1, len(cache.keys) - 1)


def _uniform(prompt: Sequence[int]) -> float:
    """A number in [0, 1) that looks random and depends on the prompt alone."""
    return zlib.crc32(np.asarray(prompt, np.int32).tobytes()) / 2**32
