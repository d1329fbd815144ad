"""Which type each weight has in a mixture, against files that llama.cpp itself has quantized."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.checkpoints.gguf import read_gguf
from pytest_llminfer.checkpoints.gguf_mixtures import stored_type, type_bytes

HIDDEN, INNER, VOCAB, LAYERS, GROUPS = 256, 512, 64, 17, 4
PARTS = {
    "attn_q": ("self_attn.q_proj", HIDDEN, HIDDEN), "attn_k": ("self_attn.k_proj", 64, HIDDEN),
    "attn_v": ("self_attn.v_proj", 64, HIDDEN), "attn_output": ("self_attn.o_proj", HIDDEN, HIDDEN),
    "ffn_gate": ("mlp.gate_proj", INNER, HIDDEN), "ffn_up": ("mlp.up_proj", INNER, HIDDEN),
    "ffn_down": ("mlp.down_proj", HIDDEN, INNER),
}  # fmt: skip
ENDS = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
MIXTURES = ("q2_k", "q3_k_m", "q3_k_l", "q4_k_s", "q5_k_m", "iq4_nl")
"""Those whose rules differ by layer or role; q4_0, q8_0 and q4_k_m are loaded in test_llamacpp_backend."""

QUANTIZE = """
import ctypes, json, sys
import gguf, llama_cpp, numpy

folder, parts, layers, hidden, inner, vocab, mixtures = json.loads(sys.argv[1])
writer = gguf.GGUFWriter(f"{folder}/plain.gguf", "llama")
writer.add_context_length(128)
writer.add_embedding_length(hidden)
writer.add_block_count(layers)
writer.add_feed_forward_length(inner)
writer.add_head_count(4)
writer.add_head_count_kv(1)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_file_type(1)
writer.add_rope_dimension_count(64)
writer.add_tokenizer_model("no_vocab")
writer.add_vocab_size(vocab)
drawn = numpy.random.default_rng(0)
for name in ("token_embd", "output"):
    writer.add_tensor(f"{name}.weight", drawn.standard_normal((vocab, hidden)).astype(numpy.float16))
writer.add_tensor("output_norm.weight", numpy.ones(hidden, numpy.float32))
for layer in range(layers):
    for part, (_, rows, columns) in parts.items():
        writer.add_tensor(f"blk.{layer}.{part}.weight", drawn.standard_normal((rows, columns)).astype(numpy.float16))
    for part in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{layer}.{part}.weight", numpy.ones(hidden, numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
for mixture in mixtures:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mixture.upper()}"), 2
    paths = (f"{folder}/{name}.gguf".encode() for name in ("plain", mixture))
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) == 0, mixture
"""


@pytest.fixture(scope="module")
def files(llamacpp_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtures")
    sizes = json.dumps([str(folder), PARTS, LAYERS, HIDDEN, INNER, VOCAB, MIXTURES])
    subprocess.run([llamacpp_python, "-c", QUANTIZE, sizes], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_weight_has_the_type_that_llama_cpp_gave_it(files: Path, mixture: str) -> None:
    of: dict[str, Any] = {"quantization": mixture, "dtype": "f16", "layers": LAYERS, "tied": False, "groups": GROUPS}
    compared = 0
    for name, tensor in read_gguf(files / f"{mixture}.gguf").tensors.items():
        part = name.split(".")[-2]
        if part.endswith("norm"):
            continue
        ours = ENDS.get(name) or f"model.layers.{name.split('.')[1]}.{PARTS[part][0]}.weight"
        assert stored_type(ours, tensor.shape, **of) == tensor.ggml_type, name
        assert type_bytes(tensor.ggml_type, tensor.shape[0] * tensor.shape[1]) == tensor.stored_bytes
        compared += 1
    assert compared == 7 * LAYERS + 2
