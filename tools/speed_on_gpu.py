"""How far speeds spread over clean starts of an engine on one GPU, and what slowdowns of 2, 5 and 10 % measure as.

    python tools/speed_on_gpu.py OUT transformers     about four minutes on an H200
    python tools/speed_on_gpu.py OUT vllm             likewise; VLLM_PYTHON names its interpreter, unless it is this one

The model has 8 layers of the shape of Llama-3-8B, in bfloat16 with dummy weights, or is ``--model``. Clean starts come first, the
last of them while other work keeps all processors but two; then, on that start without the other work, one more kernel a step (2,
 5, 10 % of the accelerator's busy seconds), and a host that is kept busy (15 % of the host's part). vLLM is started once more
without captured graphs. OUT/speed-ENGINE.json has every session; OUT/speed-ENGINE.md the table. The plugin need not be installed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.families.throughput.check import check_throughput
from pytest_llminfer.families.throughput.observe import WORKLOADS, measure
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llminfer.families.throughput.observe import Speed

FAULTS = str(Path(__file__).with_name("speed_faults.py"))
KERNELS, HOST = (0.02, 0.05, 0.10), (0.15,)
LAYERS = 8


@dataclass
class Run:
    """Everything that was measured of one engine: (what, phase, speed, seconds that were injected a step)."""

    engine: str
    rows: list[tuple[str, str, Speed, float]] = field(default_factory=list)

    def add(self, what: str, engine: Engine, phases: tuple[str, ...] = ("prefill", "decode"), injected: float = 0.0) -> None:
        """Measure now, and keep it."""
        for phase in phases:
            started = time.perf_counter()
            speed = measure(engine, WORKLOADS[phase])
            self.rows.append((what, phase, speed, injected))
            print(f"{what}, {phase}: {_line(speed)} [{time.perf_counter() - started:.0f} s] {speed.untraced}", flush=True)


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("engine", choices=("transformers", "vllm", "sglang", "simulated"))
    parser.add_argument("--starts", type=int, default=4, help="clean ones, of which the last is under load")
    parser.add_argument("--model", default="", help="folder or name; 8 layers of Llama-3-8B by default")
    parser.add_argument("--weights", default="", help="dummy or real")
    parser.add_argument("--engine-args", type=json.loads, default={})
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = given.model or str(_shape(given.out))
    weights = given.weights or ("real" if given.model else "dummy")
    run = Run(given.engine)
    begun = time.perf_counter()
    for number in range(given.starts):
        loaded = number == given.starts - 1
        engine = _start(given, model, weights, {})
        with _other_work(loaded):
            run.add("clean, other work" if loaded else "clean", engine)
        if not loaded:
            engine.close()
    _reference_beside_a_trace(engine, run)
    _slow_down(engine, run)
    engine.close()
    if given.engine == "vllm":
        engine = _start(given, model, weights, {"enforce_eager": True})
        run.add("no captured graph", engine, ("decode",))
        engine.close()
    _write(run, given.out, time.perf_counter() - begun)


def _shape(out: Path) -> Path:
    """A folder with the configuration of 8 layers of Llama-3-8B."""
    folder = out / f"llama-3-8b-{LAYERS}-layers"
    folder.mkdir(exist_ok=True)
    config = {**Model("llama-3-8b", weights="dummy").config, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _start(given: Any, model: str, weights: str, extra: dict[str, Any]) -> Engine:
    python = os.environ.get(f"{given.engine.upper()}_PYTHON", "")
    spec = EngineSpec(given.engine, environment=python, model=model, weights=weights)
    if given.engine in ("vllm", "sglang"):
        extra = {**({"kv_cache_memory_bytes": 4 << 30, "max_model_len": 2048} if given.engine == "vllm" else {}), **extra}
    started = time.perf_counter()
    log = given.out / f"{given.engine}.log"
    engine = Engine(Launch(spec, Model(model, weights=weights), {**extra, **given.engine_args}, {}, timeout=280, log=log))
    print(f"{given.engine} started in {time.perf_counter() - started:.0f} s", flush=True)
    return engine


def _burn() -> None:
    while True:
        pass


@contextmanager
def _other_work(wanted: bool) -> Iterator[None]:  # noqa: FBT001 - the only argument
    """Keep all processors but two busy."""
    cores = len(os.sched_getaffinity(0)) - 2 if wanted else 0
    processes = [multiprocessing.get_context("spawn").Process(target=_burn, daemon=True) for _ in range(max(cores, 0))]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _reference_beside_a_trace(engine: Engine, run: Run) -> None:
    """Whether the profiler goes on to slow the host once a trace has been taken: the same start, measured again."""
    run.add("after traces", engine)


def _slow_down(engine: Engine, run: Run) -> None:
    """Each slowdown in its turn, on the start that is up."""
    before = run.rows[-1][2].session
    if before.device is not None:
        for share in KERNELS:
            seconds = float(engine.run(f"{FAULTS}::add_kernel", seconds=share * before.device.busy_seconds))
            run.add(f"kernels +{share:.0%}", engine, ("decode",), seconds)
            engine.run(f"{FAULTS}::heal")
    own = before.step_seconds * before.host_share
    for share in HOST:
        engine.run(f"{FAULTS}::busy_host", seconds=share * own)
        run.add(f"host +{share:.0%}", engine, ("decode",), share * own)
        engine.run(f"{FAULTS}::heal")


def _line(speed: Speed) -> str:
    session, device = speed.session, speed.session.device
    text = f"W {1e3 * session.step_seconds:.4f} ms, "
    if session.host is not None and session.over_reference is not None:
        text += f"reference {1e3 * session.host.reference_seconds:.4f} ms, ln(W/T) {session.over_reference:+.4f}, "
    if device is not None and session.host_over_reference is not None:
        text += f"G {1e3 * device.busy_seconds:.5f} ms, h {session.host_over_reference:+.4f}, host {session.host_share:.0%}, "
        counted = (device.kernels, device.copies, device.synchronisations, device.launches)
        text += f"kernels {counted[0]}, copies {counted[1]}, waits {counted[2]}, launches {counted[3]} in {device.steps} steps, "
        text += f"rate {device.rate:.4g}"
    return text


def _judged(run: Run, phase: str, speed: Speed) -> str:
    record = next(each.session for _, other, each, _ in run.rows if other == phase)
    on_cpu = record.device is None
    verdict = check_throughput(sessions=[speed.session], recorded=[record], metric=phase, tokens_per_step=8, on_cpu=on_cpu)
    return " / ".join([verdict.outcome.value, *verdict.details])


def _write(run: Run, out: Path, seconds: float) -> None:
    rows = [
        {
            "what": what,
            "phase": phase,
            "injected_seconds": injected,
            "session": speed.session.to_dict(),
            "kernels": dict(speed.kernels),
        }
        for what, phase, speed, injected in run.rows
    ]
    (out / f"speed-{run.engine}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    lines = [f"# {run.engine}: {seconds:.0f} s", "", "Judged by the first clean start alone; inconclusive: worth fresh starts.", ""]
    lines += ["| what | phase | measured | judged |", "|---|---|---|---|"]
    lines += [f"| {what} | {phase} | {_line(speed)} | {_judged(run, phase, speed)} |" for what, phase, speed, _ in run.rows]
    lines += ["", "Spread over clean starts: sd of the logarithm, largest over smallest.", ""]
    for phase in WORKLOADS:
        clean = [speed.session for what, each, speed, _ in run.rows if each == phase and what.startswith("clean")]
        for name, values in _quantities(clean).items():
            if len(values) > 1:
                lines.append(
                    f"- {phase}, {name}: {statistics.stdev(values):.3%}, {math.exp(max(values) - min(values)):.4f} ({len(values)})"
                )
    (out / f"speed-{run.engine}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _quantities(sessions: list[Any]) -> dict[str, list[float]]:
    return {
        "wall": [math.log(each.step_seconds) for each in sessions],
        "wall over reference": [each.over_reference for each in sessions],
        "reference": [math.log(each.host.reference_seconds) for each in sessions],
        "busy": [math.log(each.device.busy_seconds) for each in sessions if each.device],
        "busy x rate": [math.log(each.device.busy_seconds * each.device.rate) for each in sessions if each.device],
        "host over reference": [each.host_over_reference for each in sessions if each.device],
    }


if __name__ == "__main__":
    main()
