"""The backend of ``echo``, imported in a worker alone. It needs the standard library, and what a worker has of pytest-llminfer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.safetensors import read_checkpoint, read_configuration
from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


class EchoBackend:
    """Holds the headers of a checkpoint, and answers each prompt with its own tokens, over and over.

    ``engine_args``: ``lose``, the name of a tensor that is then missing.
    """

    capabilities = frozenset({"generate", "layout", "memory", "ranks", "settings"})

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        self._spec, self._folder, self._progress = spec, Path(model_path), progress
        self._lost = engine_args.get("lose", "")
        if unknown := engine_args.keys() - {"lose"}:
            raise BadInputError(f"echo has no argument {min(unknown)!r}; there is: lose")

    def warm(self) -> None:
        """Nothing is imported."""

    def load(self) -> Message:
        """Read the headers."""
        self._config = read_configuration(str(self._folder))
        self._tensors = {name: tensor for name, tensor in read_checkpoint(self._folder).items() if name != self._lost}
        return {
            "dtype": "bf16",
            "kv_dtype": "bf16",
            "device": "cpu",
            "device_name": "none",
            "device_count": 1,
            "versions": {"engine": "1.0"},
            "load_seconds": {"import": 0.0, "load": 0.0},
        }

    def generate(
        self, *, prompts: Sequence[Sequence[int]], sampling: Message, logprobs: int = 0, cache_path: str = "engine"
    ) -> Message:
        """Each prompt's tokens again."""
        del logprobs, cache_path
        length = sampling["max_tokens"]
        answers = [(list(prompt) * (length // len(prompt) + 1))[:length] for prompt in prompts]
        return {"outputs": [{"token_ids": answer, "finish_reason": "length"} for answer in answers]}

    def layout(self) -> Message:
        """Every tensor of the checkpoint as it lies there."""
        return {
            "parameters": [
                {
                    "name": name,
                    "dtype": _DTYPES[tensor.dtype],
                    "shape": list(tensor.shape),
                    "stored_shape": list(tensor.shape),
                    "stored_bytes": tensor.stored_bytes,
                    "device": "cpu",
                }
                for name, tensor in self._tensors.items()
            ],
            "tied": [["model.embed_tokens.weight", "lm_head.weight"]] if self._config.get("tie_word_embeddings") else [],
        }

    def memory(self, *, reset_peak: bool = False) -> Message:
        """The bytes of the tensors, and nothing else."""
        del reset_peak
        held = sum(tensor.stored_bytes for tensor in self._tensors.values())
        return {
            "device": "cpu",
            "weights_bytes": held,
            "buffers_bytes": 0,
            "live_bytes": held,
            "load_peak_bytes": held,
            "run_peak_bytes": held,
            "measured_by": "the headers",
            "resolution_bytes": 0,
        }

    def ranks(self) -> Message:
        """This process alone."""
        return {"ranks": [{"pid": os.getpid(), "name": "echo", "device": "cpu", "weights_bytes": self.memory()["weights_bytes"]}]}

    def settings(self) -> Message:
        """What it was given, and whether what lies beside this package could be imported."""
        beside = str(Path(__file__).resolve().parents[2])
        return {"resolved": {"lose": self._lost, "beside_on_path": beside in sys.path}, "defaults": {"lose": ""}}

    def close(self) -> None:
        """Nothing is held."""
