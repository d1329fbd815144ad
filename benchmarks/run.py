"""What the harness itself costs: every benchmark of this folder, one table.

With ``--vllm`` that of vLLM too, whose environment is made the first time.
Prints Markdown; ``--write`` also keeps it in ``results.md`` beside this file. Ends with status 1 if a number is over its limit.
Nothing else should be running on the machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import harness_tax
import plugin_import
import shipped_suites
import vllm_tax
from result import markdown
from sides import THREADS

RESULTS = Path(__file__).resolve().with_name("results.md")


def main() -> None:
    """Measure, print, write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS.name}")
    parser.add_argument("--repeats", type=int, default=plugin_import.REPEATS, help="imports, and rounds of sessions")
    parser.add_argument("--questions", type=int, default=harness_tax.QUESTIONS, help="asked on each side")
    parser.add_argument("--pairs", type=int, default=harness_tax.PAIRS, help="of the plugin and the bare loop")
    parser.add_argument("--threads", type=int, default=THREADS, help="OMP_NUM_THREADS of both sides")
    parser.add_argument("--vllm", action="store_true", help=f"also measure {vllm_tax.ENGINE}")
    given = parser.parse_args()
    results = plugin_import.measure(given.repeats)
    results += harness_tax.measure(given.questions, given.pairs, given.threads)
    if given.vllm:
        results += vllm_tax.measure(vllm_tax.QUESTIONS, vllm_tax.PAIRS, vllm_tax.THREADS)
    results += shipped_suites.measure(1)
    table = markdown(results, [word for word in sys.argv[1:] if word != "--write"])
    print(table, end="")
    if given.write:
        RESULTS.write_text(table, encoding="utf-8")
    sys.exit(any(result.outcome == "OVER" for result in results))


if __name__ == "__main__":
    main()
