"""Which fault of the KV cache is caught by which ways through it, and what it is taken for: a Markdown table from a run.

python tools/kv_fault_table.py [--clean 200] [--examples 8] [--fault NAME]

Exit status 1 if a fault is missed where it acts, is taken for something else, or if anything fails without a fault.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.kv_equivalence.check import LIMIT
from pytest_llminfer.families.kv_equivalence.diagnosis import Kind
from pytest_llminfer.families.kv_equivalence.drawing import PathCase, draw_cases
from pytest_llminfer.families.kv_equivalence.observe import FAMILIES, STRUCTURES, KVEquivalence, Structure
from pytest_llminfer.families.kv_equivalence.stored import OF_DEEPER
from pytest_llminfer.models.cut import structure_config
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome, Verdict

FAULTS = Path(__file__).resolve().parents[1] / "tests" / "support" / "faults" / "kv_cache.py"
CONTINUED = ("decode", "chunked", "multi-turn", "left-padded", "static", "crop", "beams", "prefix")
"""Families all of whose ways have passes that go on from something."""


@dataclass(frozen=True)
class Fault:
    """name: of a function in ``FAULTS``. families: in which it acts. first_layer: whether on what the first layer keeps."""

    name: str
    kind: Kind
    families: tuple[str, ...]
    windowed: bool = False
    first_layer: bool = True


TABLE = (
    Fault("wrong_block", Kind.BLOCK, CONTINUED, first_layer=False),
    Fault("shifted_after_crop", Kind.POSITION, ("crop", "prefix")),
    Fault("stale_prefix", Kind.PREFIX, ("prefix",)),
    Fault("swapped_heads", Kind.HEADS, CONTINUED),
    Fault("long_window", Kind.WINDOW, (*CONTINUED, "sliding"), windowed=True, first_layer=False),
    Fault("unmasked_pads", Kind.PADDING, ("left-padded",), first_layer=False),
    Fault("unscaled_fp8", Kind.SCALE, (*CONTINUED, "fp8")),
)


def taken_for(verdicts: list[Verdict]) -> list[str]:
    """What each verdict that is no PASS says it is."""
    return [verdict.key for verdict in verdicts if verdict.outcome is not Outcome.PASS]


def judged(model: Structure, family: str, case: PathCase) -> list[Verdict]:
    """As the suite judges a way: asked again with one token repeated once it has failed."""
    compared = model.ask(case)
    if model.fails(family, compared):
        compared = model.ask(case, again=True)
    return model.judged(family, [compared])


def first_layer(engine: Engine, name: str = "reference") -> list[str]:
    """What the first layer of the served model is taken for, in its own dtype."""
    found: list[Verdict] = []
    KVEquivalence(engine, found.append).first_layer()
    return [f"{name}: {key}" for key in taken_for(found)]


def faults(engine: Engine, models: list[Structure], table: list[Fault], examples: int) -> list[str]:
    """Print the table; what was missed or taken for something else."""
    wrong: list[str] = []
    names = " | ".join(model.name for model in models)
    print(f"| fault | diagnosis | families of cache paths in which it acts | {names} | first layer, bf16 |")
    print(f"|---|---|---|{'---|' * len(models)}---|")
    for fault in table:
        cells = []
        engine.run(f"{FAULTS}::{fault.name}")
        for model in models:
            has_window = any(model.sizes.windows) if model.sizes else False
            if fault.windowed and not has_window:
                cells.append("no window")
                continue
            cells.append(_cell(fault, model, examples, wrong))
        layer = first_layer(engine)
        told = ", ".join(entry.partition(": ")[2] for entry in layer) or "—"
        if fault.first_layer != bool(layer) or (layer and told != fault.kind):
            wrong.append(f"{fault.name}: the first layer of the served model says {told}")
        engine.run(f"{FAULTS}::undo")
        families = ", ".join(fault.families)
        print(f"| `{fault.name}` | {fault.kind} | {families} | {' | '.join(cells)} | {told} |", flush=True)
    return wrong


def _cell(fault: Fault, model: Structure, examples: int, wrong: list[str]) -> str:
    caught, asked = Counter[str](), Counter[str]()
    for family in FAMILIES:
        try:
            strategy = model.strategy(family)
            for case in draw_cases(strategy, examples):
                kinds = taken_for(judged(model, family, case))
                asked[family] += 1
                caught[family] += bool(kinds)
                other = [kind for kind in kinds if kind != fault.kind]
                wrong += [f"{fault.name}, {model.name}, {family}: taken for {', '.join(other)}: {case.cache_path}"] if other else []
        except UnsupportedError:
            continue
    wrong += [
        f"{fault.name}, {model.name}: missed by {family}" for family in fault.families if asked[family] and not caught[family]
    ]
    total = sum(asked[family] for family in fault.families)
    beside = sum(caught.values()) - sum(caught[family] for family in fault.families)
    return f"{sum(caught[family] for family in fault.families)} of {total}{f', {beside} beside' if beside else ''}"


def drawn_configuration(rng: random.Random) -> dict[str, Any]:
    """Of any of five architectures, small: its heads, layers, sizes, biases, window and its pattern."""
    layers, kv_heads, head_dim = rng.randint(2, 4), rng.choice((1, 2, 3, 4)), rng.choice((16, 32, 48, 64, 96))
    heads = kv_heads * rng.choice((1, 2, 3, 4))
    hidden = heads * rng.choice((8, 12, 16, 24))
    if rng.random() < 1 / 5:
        sizes = {"n_embd": heads * head_dim, "n_head": heads, "n_layer": layers, "n_inner": 2 * hidden, "n_positions": 256}
        return {"model_type": "gpt2", **sizes, "vocab_size": rng.randint(100, 700)}
    config: dict[str, Any] = {
        "model_type": rng.choice(("llama", "mistral", "qwen2", "gemma3_text")),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "num_hidden_layers": layers,
        "vocab_size": rng.randint(100, 700),
        "max_position_embeddings": 512,
        "sliding_window": None,
    }
    if config["model_type"] == "llama":
        config["attention_bias"] = rng.random() < 1 / 2
    if config["model_type"] == "mistral":
        config["sliding_window"] = rng.choice((None, rng.randint(12, 30)))
    if config["model_type"] == "gemma3_text":
        pattern = [rng.choice(("sliding_attention", "full_attention")) for _ in range(layers)]
        config |= {"sliding_window": rng.randint(12, 30), "layer_types": pattern, "query_pre_attn_scalar": head_dim}
    return config


def clean(engine: Engine, count: int) -> list[str]:
    """``count`` drawn configurations, one drawn way of each of two families; what failed."""
    rng = random.Random(20261123)  # noqa: S311 - no secret
    wrong: list[str] = []
    ways, largest, error, deeper = 0, 0.0, 0.0, 0.0
    for number in range(count):
        config = drawn_configuration(rng)
        model = Structure(engine, f"drawn {number}", config, seed=number)
        for family in rng.sample(FAMILIES, 2):
            try:
                case = draw_cases(model.strategy(family), 2, number=number)[-1]
                verdicts = judged(model, family, case)
            except UnsupportedError:
                continue
            ways += 1
            largest = max([largest, *(float(m.value) for m in verdicts[0].measurements if m.name.startswith("largest mean KL"))])
            error = max([error, *(float(m.value) for m in verdicts[0].measurements if m.unit == LIMIT)])
            deeper = max([deeper, *(float(m.value) for m in verdicts[0].measurements if m.unit == OF_DEEPER)])
            wrong += [f"clean, {config}, {family}: {verdict}" for verdict in verdicts if verdict.outcome is not Outcome.PASS]
    print(
        f"\n{count} drawn configurations, {ways} ways: {len(wrong)} false alarms; largest mean KL of a sequence {largest:.2g} nats,"
    )
    print(
        f"largest error of a key or value {error:.2g} of its limit; of a quantized one in a deeper layer {deeper:.2g} {OF_DEEPER}"
    )
    return wrong


def main() -> int:
    """The table, and what is wrong with it on standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", type=int, default=0, help="how many drawn configurations without a fault")
    parser.add_argument("--examples", type=int, default=3, help="ways drawn of each family")
    parser.add_argument("--fault", choices=[fault.name for fault in TABLE], help="this one alone")
    asked = parser.parse_args()
    reference = Model("reference")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        engine = Engine(Launch(EngineSpec("transformers"), reference, {}, {"OMP_NUM_THREADS": "1"}, timeout=240, log=log))
        configurations = {"reference": reference.config, **STRUCTURES}
        models = [Structure(engine, name, structure_config(config)) for name, config in configurations.items()]
        try:
            wrong = first_layer(engine, "clean, the served model")
            table = [fault for fault in TABLE if asked.fault in (None, fault.name)]
            wrong += faults(engine, models, table, asked.examples)
            wrong += clean(engine, asked.clean) if asked.clean else []
        finally:
            engine.close()
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
