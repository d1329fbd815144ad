"""Measure the reference model in every weight format on the CPU, and print the table of its model card.

Needs Transformers, and bitsandbytes for the quantized formats. Decoding is greedy; a completion is right if its last line is
``#### <integer>`` with the problem's integer.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from greedy_outcomes import PROMPT_FORMS, completions, outcomes, prompts_in_form
from synthetic_numbers import DIFFICULTIES
from synthetic_problems import BUNDLED_DIFFICULTY, Problem, held_out_set
from train_reference_model import VALIDATION_SEED

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1] / "pytest_llminfer"
SHOTS = 5
FORMATS = ("bf16", "fp32", "int8", "nf4", "fp4")


def load(folder: Path, weight_format: str) -> Any:
    """Load the model on the CPU; 4-bit formats compute in bfloat16, nf4 with double quantization."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.float32 if weight_format == "fp32" else torch.bfloat16
    quantization = None
    if weight_format == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    elif weight_format in ("nf4", "fp4"):
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=weight_format,
            bnb_4bit_use_double_quant=weight_format == "nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    extra = {} if quantization is None else {"quantization_config": quantization}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu", **extra).eval()


def read_problems(path: Path) -> list[Problem]:
    """Read a JSON-lines file of problems."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Problem(record["question"], record["answer"]) for record in records]


def table_row(name: str, right: Sequence[bool], reference: Sequence[bool]) -> str:
    """Write one row: exact match, and outcomes that changed against the reference format."""
    lost = sum(before and not after for before, after in zip(reference, right, strict=True))
    won = sum(after and not before for before, after in zip(reference, right, strict=True))
    changed = "reference" if right is reference else f"{100 * (lost + won) / len(right):.1f} % ({lost} lost, {won} won)"
    return f"| {name} | {100 * sum(right) / len(right):.1f} % ({sum(right)}/{len(right)}) | {changed} |"


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "reference")
    parser.add_argument("--problems", type=Path, default=ROOT / "datasets" / "synthetic.jsonl")
    parser.add_argument("--validation", type=int, default=0, metavar="N", help="draw N validation-side problems instead")
    parser.add_argument("--difficulty", choices=sorted(DIFFICULTIES), default=BUNDLED_DIFFICULTY, help="of --validation")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="bf16 is always measured")
    parser.add_argument("--prompt", choices=PROMPT_FORMS, default="zero-shot", help="few-shot puts five problems before each")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from transformers import AutoTokenizer
    from transformers import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # It warns at every int8 product that activations are cast to float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    problems = read_problems(options.problems)
    if options.validation:
        problems = held_out_set("validation", options.validation, seed=VALIDATION_SEED, difficulty=DIFFICULTIES[options.difficulty])
    shots = held_out_set("validation", SHOTS, seed="shots", difficulty=DIFFICULTIES[options.difficulty])
    prompts = prompts_in_form(options.prompt, tokenizer, problems, shots)
    reference: list[bool] | None = None
    print("| format | exact match | outcomes changed against bf16 |\n|---|---|---|")
    for name in dict.fromkeys(["bf16", *options.formats]):
        texts = completions(load(options.model, name), tokenizer, prompts, batch_size=options.batch_size)
        right = outcomes(problems, texts)
        reference = reference or right
        print(table_row(name, right, reference), flush=True)


if __name__ == "__main__":
    main()
