"""Checkpoints with a fault: copies of those under assets/ in which some tensors are stored otherwise than they declare."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pytest_llminfer.checkpoints.safetensors import read_checkpoint
from pytest_llminfer.worker.backends.llamacpp.source import read_tensor
from tests.support.paths import REFERENCE

LEFT = "model.layers.2.mlp.down_proj"


def leave_a_layer_alone(source: Path, target: Path) -> Path:
    """The down projection of layer 2 is the unquantized one, and the configuration tells engines not to look for another."""
    original = read_checkpoint(REFERENCE)[f"{LEFT}.weight"]
    with original.file.open("rb") as stream:
        stream.seek(original.offset)
        put = {f"{LEFT}.weight": ("BF16", original.shape, stream.read(original.stored_bytes))}

    def ignore(config: dict[str, Any]) -> None:
        config["quantization_config"].get("ignore", []).append(LEFT)

    return copy(source, target, drop=f"{LEFT}.", put=put, change=ignore)


def widen(source: Path, target: Path, name: str) -> Path:
    """One tensor is stored in float32."""
    values = read_tensor(read_checkpoint(source)[name]).astype(np.float32)
    return copy(source, target, drop=name, put={name: ("F32", values.shape, values.tobytes())})


def take_a_layer_from(other: Path, source: Path, target: Path) -> Path:
    """The down projection of layer 2 is that of another checkpoint."""
    return copy(source, target, drop=f"{LEFT}.", put={n: t for n, t in contents(other).items() if n.startswith(f"{LEFT}.")})


def regroup(source: Path, target: Path, size: int) -> Path:
    """No fault: the same weights in smaller groups, each scale and zero repeated, as a tool with that group size stores them."""
    tensors = {}
    for name, (dtype, shape, content) in contents(source).items():
        kind, values = name.rpartition(".")[2], np.frombuffer(content, np.uint8).reshape(*shape, -1)
        if kind in {"qzeros", "scales", "weight_scale"}:
            values = values.repeat(128 // size, axis=1 if kind == "weight_scale" else 0)
        elif kind == "g_idx":
            values = (np.arange(*shape, dtype="<i4") // size).view(np.uint8).reshape(*shape, 4)
        tensors[name] = (dtype, values.shape[:-1], values.tobytes())
    return copy(source, target, put=tensors, change=lambda config: _declare_groups(config, size))


def declare_groups(source: Path, target: Path, size: int) -> Path:
    """The configuration declares groups of another size than those that are stored."""
    return copy(source, target, change=lambda config: _declare_groups(config, size))


def _declare_groups(config: dict[str, Any], size: int) -> None:
    quantization = config["quantization_config"]
    for group in quantization.get("config_groups", {"": {"weights": quantization}}).values():
        group["weights"]["group_size"] = size


def declare(source: Path, target: Path, **changed: object) -> Path:
    """The configuration declares something else of the quantization than what is stored."""
    return copy(source, target, change=lambda config: config["quantization_config"].update(changed))


def relabel(source: Path, target: Path, file_type: int) -> Path:
    """A GGUF file says that it is another mixture than it holds."""
    content, key = bytearray(source.read_bytes()), b"general.file_type"
    place = content.index(key) + len(key) + 4
    content[place : place + 4] = struct.pack("<I", file_type)
    target.write_bytes(content)
    return target


def split(source: Path, target: Path) -> Path:
    """No fault: the same tensors in two shards with an index, every other one in the first."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = contents(source)
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {name: names[number % 2] for number, name in enumerate(tensors)}
    for file in names:
        write(target / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def copy(
    source: Path, target: Path, *, drop: str = "\0", put: dict[str, Any] | None = None, change: Callable[..., Any] = lambda _: None
) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((target / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    write(target / "model.safetensors", {n: t for n, t in contents(source).items() if not n.startswith(drop)} | (put or {}))
    return target


def contents(source: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor."""
    tensors = {}
    for name, stored in read_checkpoint(source).items():
        with stored.file.open("rb") as stream:
            stream.seek(stored.offset)
            tensors[name] = (stored.dtype, stored.shape, stream.read(stored.stored_bytes))
    return tensors


def write(file: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(content for _, _, content in tensors.values())
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
