"""A checkpoint of a bundled shape with random bf16 weights, for what reads files and takes no dummy weights (bitsandbytes in vLLM).

    python tools/random_checkpoint.py llama-3-8b FOLDER

Matrices are drawn from N(0, 0.02), vectors are ones (norms) or zeros (biases). On a GPU where there is one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPES = Path(__file__).resolve().parents[1] / "pytest_llminfer" / "models" / "shapes"


def main() -> None:
    """Write it in shards of 5 GB."""
    shape, folder = sys.argv[1:]
    config = AutoConfig.from_pretrained(SHAPES / shape)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    model.save_pretrained(folder, max_shard_size="5GB")


if __name__ == "__main__":
    main()
