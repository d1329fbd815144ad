"""What each gate says of faults injected into a live engine, of other formats and engines, and of clean repeats.

    python tools/accuracy_faults.py [--repeats 20] [--engine vllm@/path/to/python]... [--questions 1000]

Everything is judged by the bundled record of transformers in bf16 on the reference model. Prints Markdown; ends with status 1 if
a clean run failed or a fault was caught by no gate. A repetition penalty of 1.05 that nobody asked for acts in two ways: on the
choice alone, and in the distribution that is reported (one that is asked for is INVALID, by the recorded sampling).
``tests/engines/test_accuracy_faults.py`` asserts the same of some of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.baselines import side_files
from pytest_llminfer.datasets.load import load
from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.families.accuracy.answers import check_flips, check_format, check_length, check_truncation
from pytest_llminfer.families.accuracy.check import AccuracyTest
from pytest_llminfer.families.accuracy.observe import WATCHED, QuestionSet
from pytest_llminfer.families.accuracy.record import unpack
from pytest_llminfer.families.accuracy.sampler import check_sampler
from pytest_llminfer.families.divergence.check import LIMITS, SAME_WEIGHTS, check_divergence
from pytest_llminfer.families.divergence.observe import TeacherForced
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.families.tokens.observe import Greedy
from pytest_llminfer.families.tokens.observe import unpack as unpack_tokens
from pytest_llminfer.families.tokens.penalties import check_no_penalty, shifts_of_seen_tokens
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Generation, Sampling, Scores
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_llminfer.families.accuracy.grading import Answer
    from pytest_llminfer.families.accuracy.recorded import Recorded

REPOSITORY = Path(__file__).resolve().parents[1]
BASELINES = REPOSITORY / "baselines" / "any" / "reference"
MODEL_FAULTS = REPOSITORY / "tests" / "support" / "faults" / "live_model.py"
ROUNDED = REPOSITORY / "tests" / "support" / "faults" / "prefill.py"
ENTRY = "transformers-none-auto-kv_auto"
MARGIN_OF_FOUR_BITS = 0.04


@dataclass(frozen=True)
class Row:
    """What the gates said of one run: the outcome of each by name, the questions asked, accuracy as a share, the p-value."""

    outcomes: dict[str, Outcome]
    asked: int
    accuracy: float
    p_value: float

    @property
    def caught(self) -> bool:
        """Whether a gate said FAIL or INVALID."""
        return bool({Outcome.FAIL, Outcome.INVALID} & set(self.outcomes.values()))


class Bench:
    """The record, the questions, and the reference of divergence."""

    def __init__(self, questions: int) -> None:
        self.model, self.dataset = Model("reference"), load("synthetic")
        self.questions = QuestionSet(self.dataset, self.model, questions)
        record = json.loads((BASELINES / "gsm8k.json").read_text())["entries"][ENTRY]
        expected, self.extractors = record["expected"], record["conditions"]["extractors"]
        ids = [problem.id for problem in self.dataset.ordered(20260101)]
        self.recorded: Recorded = unpack(expected, ids[: expected["questions"]])
        self.count = questions
        entry = json.loads((BASELINES / "divergence.json").read_text())["entries"][ENTRY]["expected"]
        arrays = side_files.unpack(side_files.load(entry["side_file"], [BASELINES]))
        columns = zip(*(arrays[name] for name in ("logprobs", "top_ids", "top_logprobs")), strict=True)
        self.reference = [Scores(*column) for column in columns]

    @contextmanager
    def engine(self, spec: EngineSpec, **engine_args: Any) -> Iterator[Engine]:
        """A loaded engine, ended afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            launch = Launch(spec, self.model, engine_args, {}, timeout=600, log=Path(folder) / "worker.log")
            engine = Engine(launch)
            try:
                yield engine
            finally:
                engine.close()

    def judge(
        self,
        engine: Engine,
        change: Callable[[list[Any]], list[Any]] | None = None,
        *,
        seed: int = 0,
        tolerated: float = 0.0,
        known: dict[str, Answer] | None = None,
    ) -> Row:
        """The verdicts on one run.

        change: made of the answers of each chunk. seed: of the order. known: answers that this engine has given; what is not among
        them is asked and added.
        """
        known = {} if known is None else known
        test = AccuracyTest(self.recorded.shuffled(seed), questions=self.count, margin=tolerated or 0.02, tolerated=tolerated)
        answers: dict[str, Answer] = {}
        verdict = None
        for upto in test.chunks:
            ids = list(test.order[len(answers) : upto])
            new = [name for name in ids if name not in known]
            known |= self.questions.graded(engine, new, watched=len(answers) < WATCHED, extractors=self.extractors) if new else {}
            answers |= {name: known[name] for name in ids}
            if change:
                answers = dict(zip(answers, change(list(answers.values())), strict=True))
            if verdict := test.look(answers):
                break
        assert verdict is not None, "the last look has a verdict"  # noqa: S101 - tells the type checker
        checks = {"truncated": check_truncation, "format": check_format, "length": check_length, "flips": check_flips}
        outcomes = {name: check(answers=answers, recorded=self.recorded).outcome for name, check in checks.items()}
        outcomes["sampler"] = check_sampler(answers=answers, dtype=engine.info.dtype).outcome
        right = sum(answer.flexible for answer in answers.values())
        outcomes |= self.tokens(engine)
        return Row({"accuracy": verdict.outcome, **outcomes}, len(answers), right / len(answers), test.p_value)

    def tokens(self, engine: Engine) -> dict[str, Outcome]:
        """Greedy tokens beside the recorded ones, near ties aside, and the distributions that they were chosen from."""
        expected = json.loads((BASELINES / "tokens.json").read_text())["entries"][ENTRY]["expected"]
        greedy, reference = Greedy.ask(engine), unpack_tokens(expected)
        same = check_same_greedy_tokens(
            candidate=greedy.batched, reference=reference, dtype=greedy.dtype, noise=greedy.noise, claim="as recorded"
        )
        shifts = shifts_of_seen_tokens(candidate=greedy.batched, reference=reference, prompts=greedy.prompts)
        return {"tokens": same.outcome, "penalty": check_no_penalty(shifts=shifts, claim="as recorded").outcome}

    def divergence(self, engine: Engine) -> Outcome:
        """Of the same weights: 0.001 nats, 98.5 % the same top-1."""
        candidate = TeacherForced.ask(engine, self.dataset).scores
        limit = LIMITS[SAME_WEIGHTS]
        verdict = check_divergence(
            candidate=candidate, reference=self.reference, limit=limit, kind=SAME_WEIGHTS, dtype="bf16", of=ENTRY
        )
        return verdict.outcome


class Penalised:
    """An engine that applies a repetition penalty which nobody asked for, as servers do from a model's generation defaults."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __hash__(self) -> int:
        return hash(self._engine)

    def generate(
        self, prompts: list[Any], sampling: Sampling | None = None, *, max_tokens: int = 64, logprobs: int = 0
    ) -> list[Generation]:
        """With the penalty of Qwen2.5-Instruct's generation_config."""
        chosen = replace(sampling or Sampling(max_tokens), repetition_penalty=1.05)
        return self._engine.generate(prompts, chosen, logprobs=logprobs)


def alter(share: float) -> Callable[[list[Answer]], list[Answer]]:
    """Make every ``1 / share``-th answer wrong."""
    step = round(1 / share)
    return lambda answers: [
        replace(answer, flexible=False, strict=False) if number % step == step - 1 else answer
        for number, answer in enumerate(answers)
    ]


def with_other_template(bench: Bench, engine: Engine) -> Row:
    """Prompts worded by another template, as by a server whose template is not the model's."""
    questions = QuestionSet(bench.dataset, bench.model, bench.count)
    wrong = {name: bench.model.encode(f"User: {text}\nAssistant: ") for name, text in questions._texts.items()}  # noqa: SLF001
    questions.__dict__["_prompts"] = wrong
    changed = object.__new__(Bench)
    changed.__dict__.update(bench.__dict__, questions=questions)
    return changed.judge(engine)


def main() -> int:
    """Run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="clean runs, each in an order of its own")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--engine", action="append", default=[], help="another engine, judged by the record of transformers")
    given = parser.parse_args()
    bench, rows, others = Bench(given.questions), {}, {}
    with bench.engine(EngineSpec("transformers")) as engine:
        clean = [bench.judge(engine, seed=seed) for seed in range(given.repeats)]
        rows["2 % of answers altered"] = bench.judge(engine, alter(0.02))
        rows["repetition penalty 1.05 on the way to the engine"] = bench.judge(Penalised(engine))  # type: ignore[arg-type]
        rows["another chat template"] = with_other_template(bench, engine)
        for words, fault, arguments in (
            ("positions shifted by one", f"{MODEL_FAULTS}::shift_positions", {}),
            ("a KV block lost", f"{MODEL_FAULTS}::lose_a_block", {}),
            ("weights rounded to 3 bits", f"{ROUNDED}::round_weights", {"bits": 3}),
            ("attention rounded to five levels a row", f"{MODEL_FAULTS}::round_weights", {}),
            ("repetition penalty 1.05 in the engine", f"{MODEL_FAULTS}::penalise", {}),
            ("the same, reported after penalties", f"{MODEL_FAULTS}::penalise_what_is_reported", {}),
        ):
            engine.run(fault, **arguments)
            row = bench.judge(engine)
            rows[words] = replace(row, outcomes={**row.outcomes, "divergence": bench.divergence(engine)})
            engine.restart()
    for quantization in ("int8", "nf4", "fp4"):
        with bench.engine(EngineSpec("transformers", quantization=quantization)) as engine:
            others[f"transformers {quantization}"] = bench.judge(
                engine, tolerated=0.02 if quantization == "int8" else MARGIN_OF_FOUR_BITS
            )
    for word in given.engine:
        name, _, environment = word.partition("@")
        with bench.engine(EngineSpec(name, environment=environment)) as engine:
            others[name] = bench.judge(engine)
    return report(clean, rows, others)


def report(clean: list[Row], faults: dict[str, Row], others: dict[str, Row]) -> int:
    """Print; 1 if a clean run failed or a fault was not caught."""
    gates = ("accuracy", "sampler", "truncated", "format", "length", "flips", "tokens", "penalty", "divergence")
    print("| run | accuracy | asked | p-value | " + " | ".join(gates) + " |")
    print("|---" * (4 + len(gates)) + "|")
    for name, row in (*faults.items(), *others.items()):
        shown = " | ".join(row.outcomes[gate].value if gate in row.outcomes else "-" for gate in gates)
        print(f"| {name} | {row.accuracy:.1%} | {row.asked:,} | {row.p_value:.2g} | {shown} |")
    words = [outcome.value for row in clean for gate, outcome in row.outcomes.items() if gate == "accuracy"]
    counted = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
    print(f"\n{len(clean)} clean repeats: {counted}; questions asked: {sorted({row.asked for row in clean})}")
    return int(any(row.caught for row in clean) or not all(row.caught for row in faults.values()))


if __name__ == "__main__":
    sys.exit(main())
