"""How far every recorded cell of a model is from transformers' record: mean truncated KL with 99 % limits, and the same top-1.

python tools/divergence_table.py baselines/any/reference [ENTRY OF THE REFERENCE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pytest_llminfer.baselines import side_files
from pytest_llminfer.families.divergence.check import compare
from pytest_llminfer.observations.generation import Scores
from pytest_llminfer.stats.bootstrap import limits, resampled_means

COLUMNS = ("logprobs", "top_ids", "top_logprobs")


def read(folder: Path, entry: dict[str, dict[str, dict[str, str]]]) -> list[Scores]:
    """The predictions of one record."""
    arrays = side_files.unpack(side_files.load(entry["expected"][side_files.FIELD], [folder]))
    return [Scores(*columns) for columns in zip(*(arrays[name] for name in COLUMNS), strict=True)]


def main(folder: Path, reference: str) -> None:
    """One line a record."""
    entries = json.loads((folder / "divergence.json").read_text())["entries"]
    theirs = read(folder, entries[reference])
    print(
        "| record | mean KL, nats | 99 % limits | same top-1 | other top-1, of them near ties | noise of another execution mode |"
    )
    print("|---|---|---|---|---|---|")
    for name, entry in entries.items():
        found = compare(candidate=read(folder, entry), reference=theirs, dtype=name.split("-")[2])
        low, high = limits(resampled_means(found.kl)[0])
        print(
            f"| `{name}` | {found.kl.mean():.3g} | {low:.3g} to {high:.3g} | {1 - found.flips / found.positions:.2%} "
            f"| {found.flips}, {found.near_ties} | {entry['expected']['noise_kl']:.2g} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that holds divergence.json")
    parser.add_argument("reference", nargs="?", default="transformers-none-auto-kv_auto", help="its entry of the reference")
    given = parser.parse_args()
    main(given.folder, given.reference)
