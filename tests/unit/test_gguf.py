"""GGUF headers, written here byte by byte; and the mixtures of llama.cpp's quantizations."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.checkpoints.gguf_model import block_elements, config_from_gguf, read_gguf, stored_type, type_bytes
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.models.shape import ModelShape

U32, F32, BOOL, STRING, ARRAY, I64 = 4, 6, 7, 8, 9, 11
SIZES = {
    "general.architecture": (STRING, "llama"),
    "general.file_type": (U32, 1),
    "llama.embedding_length": (U32, 64),
    "llama.block_count": (U32, 1),
    "llama.context_length": (U32, 128),
    "llama.feed_forward_length": (U32, 96),
    "llama.attention.head_count": (U32, 4),
    "llama.attention.head_count_kv": (U32, 2),
    "llama.attention.layer_norm_rms_epsilon": (F32, 0.5),
    "llama.rope.freq_base": (F32, 500000.0),
    "tokenizer.ggml.eos_token_id": (U32, 2),
}
TENSORS = {"token_embd.weight": ((10, 64), 1), "blk.0.attn_q.weight": ((64, 64), 8), "output_norm.weight": ((64,), 0)}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value_bytes(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(value_bytes(inner, item) for item in items)
    return struct.pack({U32: "<I", F32: "<f", BOOL: "<?", I64: "<q"}[kind], value)


def gguf_bytes(metadata: dict[str, tuple[int, object]], tensors: Any, *, version: int = 3) -> bytes:
    data = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, value) in metadata.items():
        data += text(key) + struct.pack("<I", kind) + value_bytes(kind, value)
    offset, payload = 0, b""
    for number, (name, (shape, kind)) in enumerate(tensors.items()):
        elements = 1
        for length in shape:
            elements *= length
        size = {0: elements * 4, 1: elements * 2, 8: elements // 32 * 34}[kind]
        data += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)) + struct.pack("<IQ", kind, offset)
        payload = payload.ljust(offset, b"\0") + bytes([number + 1]) * size
        offset = -(-len(payload) // 32) * 32
    return data.ljust(-(-len(data) // 32) * 32, b"\0") + payload


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(metadata: dict[str, tuple[int, object]] = SIZES, tensors: dict[str, Any] = TENSORS, **fields: Any) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(gguf_bytes(metadata, tensors, **fields))
        return path

    return write


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_and_tensors_are_read(file: Callable[..., Path], version: int) -> None:
    extra = {
        "a.flag": (BOOL, True),
        "a.number": (I64, -5),
        "a.words": (ARRAY, (STRING, ["é", ""])),
        "a.lists": (ARRAY, (ARRAY, [(U32, [1, 2]), (U32, [])])),
    }
    path = file({**SIZES, **extra}, version=version)
    found = read_gguf(path)
    assert found.version == version
    assert found.file_type == "f16"
    assert [found.metadata[key] for key in extra] == [True, -5, ["é", ""], [[1, 2], []]]
    assert {name: (t.ggml_type, t.shape, t.stored_bytes, t.block_size) for name, t in found.tensors.items()} == {
        "token_embd.weight": ("f16", (10, 64), 1280, 1),
        "blk.0.attn_q.weight": ("q8_0", (64, 64), 64 * 64 // 32 * 34, 32),
        "output_norm.weight": ("f32", (64,), 256, 1),
    }
    data = path.read_bytes()
    for number, tensor in enumerate(found.tensors.values()):
        assert set(data[tensor.offset : tensor.offset + tensor.stored_bytes]) == {number + 1}


def test_a_file_cut_anywhere_is_refused_by_name(file: Callable[..., Path]) -> None:
    path = file()
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(BadInputError, match=r"model\.gguf is (truncated|no intact GGUF file)"):
            read_gguf(path)


@pytest.mark.parametrize(
    ("start", "end", "bytes_there", "words"),
    [
        (0, 4, b"PK\3\4", "begins with b'PK"),
        (4, 8, struct.pack("<I", 9), "version 9"),
        (8, 16, struct.pack("<Q", 1 << 60), "are left"),
        (24, 32, struct.pack("<Q", 1 << 60), "bytes are wanted"),
    ],
)
def test_each_kind_of_damage_is_named(file: Callable[..., Path], start: int, end: int, bytes_there: bytes, words: str) -> None:
    path = file()
    data = path.read_bytes()
    path.write_bytes(data[:start] + bytes_there + data[end:])
    with pytest.raises(BadInputError, match=words):
        read_gguf(path)


def test_an_unknown_type_of_tensor_is_named(file: Callable[..., Path]) -> None:
    path = file(tensors={"x": ((64,), 0)})
    path.write_bytes(path.read_bytes().replace(struct.pack("<QIQ", 64, 0, 0), struct.pack("<QIQ", 64, 77, 0)))
    with pytest.raises(BadInputError, match="tensor x has the ggml type 77"):
        read_gguf(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none\.gguf cannot be read"):
        read_gguf(tmp_path / "none.gguf")


def test_a_configuration_follows_from_the_file(file: Callable[..., Path]) -> None:
    config = config_from_gguf(read_gguf(file()))
    assert config["model_type"] == "llama"
    assert (config["rms_norm_eps"], config["rope_theta"], config["eos_token_id"]) == (0.5, 500000.0, 2)
    assert (config["dtype"], config["max_position_embeddings"], config["rope_scaling"]) == ("float16", 128, None)
    shape = ModelShape.from_config(config)
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.intermediate) == (1, 64, 4, 2, 16, 96)
    assert (shape.vocab, shape.tied) == (10, True)


def test_a_configuration_that_cannot_be_read_is_refused(file: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="'mamba'"):
        config_from_gguf(read_gguf(file({**SIZES, "general.architecture": (STRING, "mamba")})))
    without = {key: value for key, value in SIZES.items() if key != "llama.block_count"}
    with pytest.raises(BadInputError, match=r"llama\.block_count"):
        config_from_gguf(read_gguf(file(without)))
    with pytest.raises(BadInputError, match=r"token_embd\.weight"):
        config_from_gguf(read_gguf(file(tensors={"output_norm.weight": ((64,), 0)})))


@pytest.mark.parametrize(
    ("layers", "wider"),
    [
        (4, {2, 3}),
        (8, {0, 3, 6, 7}),
        (24, {0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23}),
        (28, {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27}),
    ],
)
def test_q4_k_m_is_wider_in_some_layers(layers: int, wider: set[int]) -> None:
    for part in ("self_attn.v_proj", "mlp.down_proj"):
        types = [
            stored_type(
                f"model.layers.{layer}.{part}.weight", (256, 256), quantization="q4_k_m", dtype="f16", layers=layers, tied=False
            )
            for layer in range(layers)
        ]
        assert {layer for layer, kind in enumerate(types) if kind == "q6_k"} == wider
        assert set(types) <= {"q4_k", "q6_k"}


@pytest.mark.parametrize(
    ("name", "shape", "quantization", "tied", "kind"),
    [
        ("model.norm.weight", (256,), "q4_k_m", False, "f32"),
        ("model.embed_tokens.weight", (10, 256), "q4_0", False, "q4_0"),
        ("model.embed_tokens.weight", (10, 256), "q4_0", True, "q6_k"),
        ("lm_head.weight", (10, 256), "q8_0", False, "q8_0"),
        ("lm_head.weight", (10, 896), "q4_k_m", False, "q8_0"),
        ("model.layers.0.self_attn.q_proj.weight", (64, 896), "q4_k_m", False, "q5_0"),
        ("model.layers.3.mlp.down_proj.weight", (64, 896), "q4_k_m", False, "q8_0"),
        ("model.layers.0.self_attn.q_proj.weight", (64, 64), "none", False, "bf16"),
    ],
)
def test_types_follow_from_role_and_row(name: str, shape: tuple[int, ...], quantization: str, tied: bool, kind: str) -> None:
    assert stored_type(name, shape, quantization=quantization, dtype="bf16", layers=4, tied=tied) == kind


def test_bytes_count_whole_blocks() -> None:
    assert [type_bytes(kind, 1024) for kind in ("f32", "bf16", "q8_0", "q4_0", "q4_k", "q6_k")] == [4096, 2048, 1088, 576, 576, 840]
    assert [block_elements(kind) for kind in ("f32", "bf16", "q8_0", "q6_k")] == [1, 1, 32, 256]
    with pytest.raises(UnsupportedError, match="'nf4'"):
        stored_type("lm_head.weight", (1, 256), quantization="nf4", dtype="f16", layers=1, tied=False)
