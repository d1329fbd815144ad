"""One optimizer step: what is quantized stays, what is not moves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Mapping


def check_one_step(*, step: Mapping[str, Any]) -> Verdict:
    """Whether one step of gradient descent has a finite loss, moves every floating-point parameter, and none that is quantized.

    step: ``loss`` (nats), and per parameter ``name``, ``quantized``, ``gradient``, ``finite``, ``moved``.
    """
    parameters = step["parameters"]
    quantized = [each for each in parameters if each["quantized"]]
    lines = [] if math.isfinite(step["loss"]) else [f"the loss is {step['loss']}"]
    lines += [f"{each['name']} is quantized and has a gradient" for each in quantized if each["gradient"]]
    lines += [f"{each['name']} is quantized and moved" for each in quantized if each["moved"]]
    lines += [f"{each['name']} has a gradient that is not finite" for each in parameters if not each["finite"]]
    lines += [
        f"{each['name']} is not quantized and did not move" for each in parameters if not (each["quantized"] or each["moved"])
    ]
    moved = sum(each["moved"] for each in parameters)
    if not moved:
        lines.insert(0, "nothing moved: there was no step")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="one optimizer step moves what is not quantized, and nothing else",
        key=f"{moved} of {len(parameters)} moved",
        measurements=(
            Measurement("loss", float(step["loss"]), "nats", 1),
            Measurement("quantized parameters", len(quantized), "parameters", len(parameters)),
            Measurement("parameters that moved", moved, "parameters", len(parameters)),
        ),
        threshold="every floating-point parameter moves, no quantized one does, the loss is finite",
        threshold_source="what training on a quantized base means (QLoRA, arXiv 2305.14314)",
        smallest_detectable="exact",
        advice="a quantized weight that moves loses its format; one that stays without being quantized has lost its gradient",
        details=first_offenders(lines),
    )
