"""Make a quantized checkpoint of a model: GPTQ, AWQ, compressed-tensors or GGUF, each with its tool in an environment of its own.

python tools/quantize.py MODEL --format gptq --out DIR

MODEL is ``reference`` or a folder with config.json, *.safetensors and a tokenizer. The formats gptq, awq and w4a16 share one scale
among 128 inputs unless ``--group-size`` says otherwise, and are calibrated on the bundled synthetic problems. Embeddings, norms and
the output matrix stay as they are. The same input gives the same bytes: ``--twice`` makes it again and compares. With ``--shared
FILE`` what stays as it is outside the layers lies in that file, which several formats of one model may link to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import shared_tensors
import tool_environments as environments

from pytest_llminfer.datasets.load import SYNTHETIC, load
from pytest_llminfer.datasets.prompts import ZERO_SHOT
from pytest_llminfer.models.model import Model

HERE = Path(__file__).resolve().parent
SEED = 20260101
SAMPLES = 128
GROUP = 128
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.gguf", "config.json")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which script makes a format in which environment, and the packages whose versions decide what comes out."""

    tool: environments.Tool | str
    script: str
    packages: tuple[str, ...]
    words: str
    grouped: bool = False


_GPTQMODEL = (environments.GPTQMODEL, "quantize_gptqmodel.py", ("gptqmodel", "torch", "transformers", "safetensors"))
_LLMCOMPRESSOR = (
    environments.LLMCOMPRESSOR,
    "quantize_llmcompressor.py",
    ("llmcompressor", "compressed-tensors", "torch", "transformers", "safetensors"),
)
_LLAMACPP = (environments.LLAMACPP, "quantize_llamacpp.py", ("llama-cpp-python", "gguf", "numpy"))

RECIPES = {
    "gptq": Recipe(*_GPTQMODEL, "GPTQ: 4 bits, symmetric, a scale for {group} inputs, no reordering", grouped=True),
    "awq": Recipe(*_GPTQMODEL, "AWQ: 4 bits with zero points, a scale for {group} inputs", grouped=True),
    "w8a8": Recipe(*_LLMCOMPRESSOR, "compressed-tensors W8A8: int8, a scale a row; activations int8, a scale a token"),
    "w4a16": Recipe(*_LLMCOMPRESSOR, "compressed-tensors W4A16: 4 bits, symmetric, a scale for {group} inputs", grouped=True),
    "fp8": Recipe(*_LLMCOMPRESSOR, "compressed-tensors FP8_DYNAMIC: float8 e4m3, a scale a row; activations a scale a token"),
    "f16": Recipe(*_LLAMACPP, "GGUF F16: matrices in fp16, norms in fp32"),
    "q8_0": Recipe(*_LLAMACPP, "GGUF Q8_0: made from F16"),
    "q4_k_m": Recipe(*_LLAMACPP, "GGUF Q4_K_M: made from F16"),
}


def main() -> int:
    """Make one format, write what made it into README.md, and say the hashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="reference, or a model folder")
    parser.add_argument("--format", required=True, choices=RECIPES)
    parser.add_argument("--out", required=True, type=Path, help="a folder; several GGUF formats may share one")
    parser.add_argument("--group-size", type=int, default=GROUP, help="inputs that share a scale in gptq, awq and w4a16")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="problems to calibrate with")
    parser.add_argument("--shared", type=Path, help="a file for the tensors that are the model's own, linked to (not for GGUF)")
    parser.add_argument("--twice", action="store_true", help="make it twice, and fail where the bytes differ")
    given = parser.parse_args()
    recipe = RECIPES[given.format]
    if given.shared and recipe.tool == environments.LLAMACPP:
        parser.error("a GGUF file holds all of its tensors: leave --shared out")
    model = Model(given.model)
    with tempfile.TemporaryDirectory() as name:
        made = [_make(given, recipe, model, Path(name) / str(number)) for number in range(2 if given.twice else 1)]
        hashes = [_hashes(folder) for folder in made]
        for file, digest in hashes[0].items():
            print(f"{digest}  {file}")
        if given.twice and hashes[0] != hashes[1]:
            print("the second run made other bytes", file=sys.stderr)
            return 1
        _keep(given, recipe, model, made[0])
    return 0


def _make(given: argparse.Namespace, recipe: Recipe, model: Model, folder: Path) -> Path:
    folder.mkdir()
    out = folder / "out"
    task = {
        "model": model.path,
        "format": given.format,
        "out": str(out),
        "group_size": given.group_size,
        "seed": SEED,
        "calibration": _calibration(model, given.samples),
    }
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    # The tools import this repository's code by path, and nothing of the interpreter that started them.
    variables = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONHOME"}}
    variables |= {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if recipe.tool == environments.LLAMACPP:
        # Its conversions are kept there: nothing that was made before may be taken for what this makes.
        variables["XDG_CACHE_HOME"] = str(folder)
    variables.setdefault("OMP_NUM_THREADS", "2")
    command = [environments.python_of(recipe.tool), str(HERE / recipe.script), str(folder / "task.json")]
    subprocess.run(command, env=variables, cwd=folder, check=True, stdout=sys.stderr)
    if given.shared:
        shared_tensors.split(out, model.folder)
    return out


def _calibration(model: Model, samples: int) -> list[list[int]]:
    """Token ids of solved problems in the model's chat form; drawn ones for a model without a tokenizer."""
    if not (model.has_tokenizer and model.chat_template):
        return model.sample_prompts(samples, 128)
    problems = load(SYNTHETIC).ordered(SEED)[:samples]
    return [model.chat(ZERO_SHOT.format(question=each.question)) + model.encode(each.answer) for each in problems]


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _keep(given: argparse.Namespace, recipe: Recipe, model: Model, made: Path) -> None:
    given.out.mkdir(parents=True, exist_ok=True)
    if recipe.tool != environments.LLAMACPP:
        for file in given.out.glob("*.safetensors*"):  # no shard of before, and nothing written through a link
            file.unlink()
    for pattern in WEIGHTS:
        for file in made.glob(pattern):
            shutil.copyfile(file, given.out / file.name)
    if given.shared:
        shared_tensors.link(given.out, given.shared)
    for name in TOKENIZER:
        if (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, given.out / name)
    found = environments.versions(recipe.tool, *recipe.packages)
    words = recipe.words.format(group=given.group_size)
    calibrated = f", calibrated on {given.samples} synthetic problems" if given.format in {"gptq", "awq"} else ""
    extra = f" --shared {given.shared.as_posix()}" if given.shared else ""
    extra += f" --group-size {given.group_size}" if recipe.grouped and given.group_size != GROUP else ""
    heading = f"## {given.format}\n"
    text = (
        f"{heading}\n{words}{calibrated}. Made of the model `{given.model}` by\n\n"
        f"    python tools/quantize.py {given.model} --format {given.format} --out {given.out.as_posix()}{extra}\n\n"
        f"with {', '.join(f'{name} {version}' for name, version in found.items())}.\n"
    )
    _add_section(given.out / "README.md", heading, text)


def _add_section(file: Path, heading: str, text: str) -> None:
    """Write one format's section, in place of the one that was there."""
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    sections = [f"## {part}" for part in before.split("## ")[1:] if not f"## {part}".startswith(heading)]
    file.write_text("\n".join(section.rstrip("\n") + "\n" for section in [*sections, text]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
