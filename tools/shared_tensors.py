"""One file for tensors that several checkpoints of a model hold unchanged: each checkpoint links to it beside its own shard.

What quantization leaves alone outside the layers (embeddings, last norm, output matrix) is the same in every format. safetensors:
8 bytes with the length of the JSON header, the header, the data (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import struct
import sys
from typing import TYPE_CHECKING

from pytest_llminfer.checkpoints.safetensors import StoredTensor, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SHARED, OWN = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def split(folder: Path, model: Path) -> None:
    """Make two shards and an index of the one file in ``folder``: the tensors that are those of ``model``, and the others."""
    original, tensors = read_checkpoint(model), read_checkpoint(folder)
    contents = {name: _content(tensor) for name, tensor in tensors.items()}
    shared = {
        name for name in tensors if ".layers." not in name and name in original and contents[name] == _content(original[name])
    }
    if not shared:
        sys.exit(f"{folder} shares no tensor with {model}: leave --shared out")
    # By name, so that tools that write in another order share the same bytes.
    files = {SHARED: sorted(shared), OWN: [name for name in tensors if name not in shared]}
    for file, names in files.items():
        _write(folder / file, {name: tensors[name] for name in names}, contents)
    size = sum(tensor.stored_bytes for tensor in tensors.values())
    weight_map = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / "model.safetensors").unlink()


def link(folder: Path, shared: Path) -> None:
    """Keep the first shard of ``folder`` as the file ``shared``, and a relative link to it; one that is there must be the same."""
    shard = folder / SHARED
    if shared.is_file() and not filecmp.cmp(shard, shared, shallow=False):
        sys.exit(f"{shared} holds other tensors than {shard}: remove it, or name another file")
    shared.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shard, shared)
    shard.unlink()
    shard.symlink_to(os.path.relpath(shared.resolve(), folder.resolve()))


def _content(tensor: StoredTensor) -> tuple[str, tuple[int, ...], bytes]:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        return tensor.dtype, tensor.shape, stream.read(tensor.stored_bytes)


def _write(file: Path, tensors: Mapping[str, StoredTensor], contents: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.stored_bytes],
        }
        offset += tensor.stored_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8 bytes
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in tensors:
            stream.write(contents[name][2])
