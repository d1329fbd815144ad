"""What a session asks of the layouts of checkpoints on disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Which checkpoints on disk are judged.

    Attributes:
        paths: Folders of safetensors or .gguf files whose headers are judged without an engine, each once; empty for none.
    """

    paths: tuple[str, ...] = ()
