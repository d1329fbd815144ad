"""What ``engine_args`` may hold for this engine."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

FROM_PRETRAINED = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "disable_mmap",
    "experts_implementation",
    "force_download",
    "kernel_config",
    "local_files_only",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
    "use_kernels",
    "use_safetensors",
    "variant",
)
"""Keyword arguments that go to ``from_pretrained`` as they are."""

OWN = ("max_batch_tokens", "repack_4bit_for_cpu")


@dataclass(frozen=True, slots=True)
class Arguments:
    """``engine_args``, sorted by who reads them.

    Attributes:
        max_batch_tokens: Prompt and generated tokens that a batch may hold; None chooses by the memory that is free.
        repack_4bit_for_cpu: Whether bitsandbytes may repack 4-bit weights at their first use, on processors with AVX512-BF16.
        from_pretrained: Keyword arguments of transformers' ``from_pretrained``.
    """

    max_batch_tokens: int | None
    repack_4bit_for_cpu: bool
    from_pretrained: dict[str, Any]

    @classmethod
    def read(cls, engine_args: Mapping[str, Any]) -> Arguments:
        """Refuse names that nothing would read, with the closest one that exists.

        Raises:
            BadInputError: an unknown name, a max_batch_tokens below 1, or trust in code of a checkpoint, which is never run.
        """
        known = (*OWN, *FROM_PRETRAINED)
        for name in engine_args:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise BadInputError(f"unknown engine argument {name!r} for transformers; valid: {', '.join(sorted(known))}.{hint}")
        max_batch_tokens = engine_args.get("max_batch_tokens")
        if max_batch_tokens is not None and (not isinstance(max_batch_tokens, int) or max_batch_tokens < 1):
            raise BadInputError(f"max_batch_tokens must be a whole number of at least 1, not {max_batch_tokens!r}")
        if engine_args.get("trust_remote_code"):
            raise BadInputError(
                "trust_remote_code cannot be used: this engine runs no code that comes with a checkpoint. A server that you trust "
                "with it can be asked by its address: --engine=openai@http://host:port/v1"
            )
        return cls(
            max_batch_tokens=max_batch_tokens,
            repack_4bit_for_cpu=bool(engine_args.get("repack_4bit_for_cpu", False)),
            from_pretrained={"attn_implementation": "sdpa", **{name: engine_args[name] for name in engine_args if name not in OWN}},
        )
