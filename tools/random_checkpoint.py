"""A checkpoint of a bundled shape with random bf16 weights that act like trained ones, where a suite needs files or predictions.

    python tools/random_checkpoint.py qwen2.5-7b FOLDER

Dummy weights predict nothing, and ordinary random ones amplify rounding until it looks like a fault (``docs/execution_modes.md``).
These are drawn so that predictions are peaked, hang on the whole context, and bf16 moves them little. On a GPU where there is one.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPES = Path(__file__).resolve().parents[1] / "pytest_llminfer" / "models" / "shapes"
ENTROPY = 3.0
"""Nats. Gaussian logits of variance s^2 over V tokens have an entropy of ln V - s^2/2 (Derrida 1981, above freezing)."""
BRANCH = 0.5
"""What attention or the MLP adds to a channel, in standard deviations of the embedding. More would make rounding and faults larger,
and a cache of fp8 as well, which has to stay below 5e-3 nats (docs/methods.md#quantized-caches)."""
ATTENTION = 2.0
"""Standard deviation of queries and keys, so that scores have its square: a few tokens of thousands are attended to, not all."""
GATED = 0.6
"""Root mean square of silu(x) y for standard normal x and y."""
BIAS = 0.2
UNIT = ("v_proj", "gate_proj", "up_proj", "lm_head")
"""Matrices that keep a vector's root mean square."""


def spread(name: str, columns: int) -> float:
    """The standard deviation of a parameter.

    Raises:
        SystemExit: a parameter of an architecture other than Llama's, Mistral's and Qwen2's.
    """
    if name.endswith("bias"):
        return BIAS
    matrix = name.split(".")[-2]
    gains = dict.fromkeys(UNIT, 1.0) | {"q_proj": ATTENTION, "k_proj": ATTENTION, "o_proj": BRANCH, "down_proj": BRANCH / GATED}
    if matrix == "embed_tokens":
        return 1.0
    if matrix not in gains:
        raise SystemExit(f"how {name} is drawn is not known: take a shape of Llama, Mistral or Qwen2")
    return float(gains[matrix] / math.sqrt(columns))


@torch.no_grad()
def draw(model: PreTrainedModel) -> None:
    """Draw every parameter in place, with torch's own seed.

    Each channel of the residual stream is the embedding and what one branch adds to it; the other rows of that branch's output are
    zero. So a channel is rounded once and not twice a layer, which otherwise makes nearly all of the noise of bf16.

    Channel 0 is 1 in every embedding and written by no branch. By it all logits are lowered alike, so that the likeliest are near
    zero, where bf16 is fine; probabilities do not change. The signs of the last norm keep a tied embedding from predicting the
    token that it reads.
    """
    config = model.config
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            parameter.normal_(0, spread(name, parameter.shape[-1]))
        else:
            parameter.fill_(1.0)

    embedding, head, norm = model.get_input_embeddings().weight, model.lm_head.weight, model.model.norm.weight
    deviation = math.sqrt(2 * max(math.log(config.vocab_size) - ENTROPY, 0.5))
    scale = deviation / math.sqrt(config.hidden_size) if config.tie_word_embeddings else deviation
    norm.bernoulli_().mul_(2 * scale).sub_(scale)
    embedding[:, 0] = 1.0
    head[:, 0] = 1.0
    norm[0] = -deviation * math.sqrt(2 * math.log(config.vocab_size))

    channels = torch.arange(config.hidden_size, device=norm.device)
    branches = [branch for layer in model.model.layers for branch in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    for number, branch in enumerate(branches):
        branch.weight[(channels % len(branches) != number) | (channels == 0)] = 0.0


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
    draw(model)
    model.save_pretrained(folder, max_shard_size="5GB")


if __name__ == "__main__":
    main()
