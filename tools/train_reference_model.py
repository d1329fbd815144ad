"""Train the reference model and its tokenizer from nothing, on one GPU, and write a Hugging Face model folder.

The default arguments are the recipe of the model that the package ships. Batches are the same in every run with the same
arguments; the weights are not bit for bit the same, because GPU kernels add in varying order.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's documentation uses
from greedy_outcomes import completions, outcomes, prompts_in_form
from muon import Muon
from reference_architecture import ReferenceModel, Shape
from reference_tokenizer import PAD, TURN_END, CachedEncoder, save_tokenizer, token_id, train_tokenizer
from safetensors.torch import save_file
from synthetic_numbers import DIFFICULTIES
from synthetic_problems import BUNDLED_DIFFICULTY, held_out_set
from training_rows import SYSTEM_MESSAGES, Batch, batches_in_turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_llminfer.datasets.prompts import FEW_SHOT_EXAMPLE, ZERO_SHOT

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WARMUP_STEPS = 50
LOSS_EVERY = 25
VALIDATION_SEED = "validation"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the weights."""

    steps: int
    batch_tokens: int
    difficulty: str
    generators: int
    seed: int
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3


def make_tokenizer(difficulty: str) -> Tokenizer:
    """Train the tokenizer, and check that the encoder of the training rows agrees with it."""
    wrappers = [ZERO_SHOT, FEW_SHOT_EXAMPLE, *SYSTEM_MESSAGES, "system\n", "user\n", "assistant\n"]
    tokenizer = train_tokenizer(wrappers * 500, difficulty=DIFFICULTIES[difficulty])
    sample = held_out_set("validation", 200, seed="encoder", difficulty=DIFFICULTIES[difficulty])
    shots = [FEW_SHOT_EXAMPLE.format(question=problem.question, answer=problem.answer) for problem in sample]
    CachedEncoder(tokenizer).check([*wrappers, *shots, "\n\n".join(shots), *(p.answer for p in sample)])
    return tokenizer


def train(model: ReferenceModel, tokenizer: Tokenizer, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Train in place; return tokens, problems, seconds and the loss curve (mean nats a target token)."""
    optimizers = [
        Muon(model.matrices(), lr=recipe.muon_lr),
        torch.optim.AdamW(model.others(), lr=recipe.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe.steps))
        for optimizer in optimizers
    ]
    batches = batches_in_turn(
        tokenizer.to_str(),
        seed=recipe.seed,
        difficulty=recipe.difficulty,
        batch_tokens=recipe.batch_tokens,
        processes=recipe.generators,
    )
    tokens = problems = 0
    curve: list[tuple[int, float]] = []
    first = next(batches)
    start = time.perf_counter()
    for step in range(recipe.steps):
        batch = first if step == 0 else next(batches)
        loss = batch_loss(model, batch, device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        tokens += batch.real_tokens
        problems += batch.problems
        if step % LOSS_EVERY == 0 or step == recipe.steps - 1:
            curve.append((step, round(loss.item(), 4)))
            print(f"step {step} loss {curve[-1][1]} seconds {time.perf_counter() - start:.1f}", flush=True)
    batches.close()
    return {
        "steps": recipe.steps,
        "tokens": tokens,
        "problems": problems,
        "seconds": round(time.perf_counter() - start, 1),
        "loss": curve,
    }


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the factor of a short linear warm-up and a cosine to zero."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def batch_loss(model: ReferenceModel, batch: Batch, device: torch.device) -> torch.Tensor:
    """Return the mean cross-entropy of the targets."""
    tokens, positions, targets = (
        torch.from_numpy(array).to(device, non_blocking=True) for array in (batch.tokens, batch.positions, batch.targets)
    )
    return F.cross_entropy(model(tokens.int(), positions).float(), targets.long())


def save_model(model: ReferenceModel, tokenizer: Tokenizer, shape: Shape, folder: Path) -> None:
    """Write config, generation config, tokenizer and bfloat16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    eos, pad = token_id(tokenizer, TURN_END), token_id(tokenizer, PAD)
    generation = {"do_sample": False, "eos_token_id": eos, "pad_token_id": pad}
    for name, content in (
        ("config.json", shape.config(eos_token_id=eos, pad_token_id=pad)),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder, max_positions=shape.max_positions)
    weights = {name: value.detach().bfloat16().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def validation_accuracy(folder: Path, *, count: int, difficulty: str, device: torch.device) -> float:
    """Return the greedy exact match, from 0 to 1, of the written folder on validation-side problems."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    problems = held_out_set("validation", count, seed=VALIDATION_SEED, difficulty=DIFFICULTIES[difficulty])
    texts = completions(model, tokenizer, prompts_in_form("zero-shot", tokenizer, problems), batch_size=500)
    right = outcomes(problems, texts)
    return sum(right) / len(right)


def main() -> None:
    """Train, write the folder, and print and log the validation accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--log", type=Path, help="training log to write, JSON")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--difficulty", choices=sorted(DIFFICULTIES), default=BUNDLED_DIFFICULTY)
    parser.add_argument("--batch-tokens", type=int, default=98304, help="tokens a batch, padding included")
    parser.add_argument("--generators", type=int, default=3, help="processes that write training rows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--validation", type=int, default=1500, help="number of validation problems")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    recipe = Recipe(options.steps, options.batch_tokens, options.difficulty, options.generators, options.seed)
    shape = replace(Shape(), layers=options.layers)
    tokenizer = make_tokenizer(recipe.difficulty)
    torch.manual_seed(recipe.seed)
    model = ReferenceModel(shape, torch.bfloat16 if device.type == "cuda" else torch.float32).to(device)
    log = train(model, tokenizer, recipe, device)
    save_model(model, tokenizer, shape, options.output)
    log["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    log["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    log["torch"] = torch.__version__
    log["difficulty"] = recipe.difficulty
    log["validation_problems"] = options.validation
    log["validation_accuracy"] = validation_accuracy(
        options.output, count=options.validation, difficulty=recipe.difficulty, device=device
    )
    print(json.dumps({key: value for key, value in log.items() if key != "loss"}))
    if options.log:
        options.log.write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
