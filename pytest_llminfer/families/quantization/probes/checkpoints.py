"""A live model saved in shards and loaded again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.worker.backends.transformers.quantization import keep_4bit_layout

if TYPE_CHECKING:
    from collections.abc import Sequence


def save_and_reload(model: Any, tokens: Sequence[int], shard_bytes: int) -> dict[str, Any]:
    """Save with files of at most ``shard_bytes``, load what was saved, and compare the logits after the same tokens.

    Returns ``files`` (bytes by name), ``largest_tensor`` (bytes), ``indexed`` (names in the index, with their file),
    ``stored`` (names in the files' headers, with their file), ``missing`` (names that loading had to make up),
    ``largest_difference`` of the logits, ``positions`` compared.
    """
    ids = torch.tensor([list(tokens)], device=model.device)
    with tempfile.TemporaryDirectory(prefix="llminfer-checkpoint-") as folder:
        model.save_pretrained(folder, max_shard_size=shard_bytes)
        files = sorted(Path(folder).glob("*.safetensors"))
        index = Path(folder) / "model.safetensors.index.json"
        indexed = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
        headers = {file.name: _header(file) for file in files}
        again, report = type(model).from_pretrained(
            folder,
            dtype=model.dtype,
            device_map={"": model.device},
            # It is not saved with the model, and another one rounds otherwise.
            attn_implementation=model.config._attn_implementation,  # noqa: SLF001 - transformers has no public name for it
            output_loading_info=True,
        )
        again.eval()
        keep_4bit_layout(again)
        with torch.inference_mode():
            difference = (model(input_ids=ids).logits.float() - again(input_ids=ids).logits.float()).abs().max()
    spans = [entry["data_offsets"] for header in headers.values() for entry in header.values()]
    return {
        "files": {
            file: sum(span[1] - span[0] for span in (entry["data_offsets"] for entry in header.values()))
            for file, header in headers.items()
        },
        "largest_tensor": max(end - start for start, end in spans),
        "indexed": indexed,
        "stored": {name: file for file, header in headers.items() for name in header},
        "missing": sorted(map(str, report["missing_keys"])),
        "largest_difference": float(difference),
        "positions": len(tokens),
    }


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return header
