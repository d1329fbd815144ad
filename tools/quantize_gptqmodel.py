"""GPTQ and AWQ with gptqmodel; run by quantize.py in the environment of that tool."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(task: dict[str, Any]) -> None:
    """Quantize every linear of the layers, and save it packed."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    torch.manual_seed(task["seed"])
    awq = task["format"] == "awq"
    words: dict[str, Any] = {"bits": 4, "group_size": task["group_size"], "device": "cpu"}
    words |= {"quant_method": "awq", "format": "gemm", "sym": False} if awq else {"desc_act": False, "sym": True}
    model = GPTQModel.load(task["model"], QuantizeConfig(**words))
    examples = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in task["calibration"]]
    model.quantize(examples, batch_size=1, **({"backend": BACKEND.TORCH_AWQ} if awq else {}))
    model.save(task["out"])
    _forget_folders(Path(task["out"]))


def _forget_folders(folder: Path) -> None:
    """Leave out where gptqmodel kept what it had no room for: another name every time."""
    for name in ("config.json", "quantize_config.json"):
        file = folder / name
        if file.is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
            config.get("quantization_config", config).get("meta", {}).pop("offload_to_disk_path", None)
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
