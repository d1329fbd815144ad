"""compressed-tensors W8A8, W4A16 and FP8_DYNAMIC with llmcompressor; run by quantize.py in the environment of that tool.

Round to nearest: the weights alone decide, no activation is looked at, so that there is nothing to calibrate.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SCHEMES = {"w8a8": "W8A8", "w4a16": "W4A16", "fp8": "FP8_DYNAMIC"}
PRESET_GROUP = 128


def main(task: dict[str, Any]) -> None:
    """Quantize every linear but the output matrix, and save it packed."""
    import torch
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    torch.manual_seed(task["seed"])
    name = SCHEMES[task["format"]]
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype="auto")
    if name == "W4A16" and task["group_size"] != PRESET_GROUP:
        scheme: QuantizationScheme = preset_name_to_scheme(name, ["Linear"])
        scheme.weights.group_size = task["group_size"]
        recipe = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    else:
        recipe = QuantizationModifier(targets="Linear", scheme=name, ignore=["lm_head"])
    oneshot(model=model, recipe=recipe)
    model.save_pretrained(task["out"], save_compressed=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
