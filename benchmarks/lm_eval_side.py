"""Side by side with lm-evaluation-harness: the same model, questions and engine; the same prompts and scores; time to a verdict.

Both sides ask the bundled GSM8K-like questions of the bundled reference model with transformers on the CPU, with the same dtype
and number of threads. lm-eval runs in an environment of its own (``lm_eval_environment.py``) with the versions of
``constraints.txt``, on a task that takes everything from its ``gsm8k`` but the questions, the form and the token limit.

First, untimed, for each form of prompt: the token ids that reach both models must be the same ids, every answer of lm-eval must be
graded by our rules as lm-eval graded it, and the scores of both sides are shown; else the benchmark ends. Then, in pairs whose
order alternates: the wall time of two commands from start to end, ``pytest suites/test_accuracy.py`` with a stored baseline, which
ends in a verdict, and ``lm_eval --model hf``, which ends in a score, both zero-shot. lm-eval stops at strings and decodes for that
at every step, and its batches are of a fixed size: ``--batch-size``. Long prompts are slow on a CPU, so few questions are asked
5-shot.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_environment import LM_EVAL, models
from result import REPOSITORY, Result, finish, machine
from sides import THREADS

from pytest_llminfer.datasets.few_shot import load_examples
from pytest_llminfer.datasets.gsm8k import Problem, grade
from pytest_llminfer.datasets.load import SYNTHETIC, load
from pytest_llminfer.datasets.prompts import FORMS, PromptForm
from pytest_llminfer.families.accuracy.record import ORDER_SEED
from pytest_llminfer.models.model import Model

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTIONS, FEW_SHOT_QUESTIONS, PAIRS, BATCH_SIZE = 300, 30, 2, 64
LAST_CHARACTERS = 3000
VERDICT = re.compile(r"^transformers\S*\s+((?:pass|inconclusive) .*?)\s*$", re.MULTILINE)
"""Of the cell, in the table that the session ends with."""
MAX_TOKENS = 256
"""Of an answer, as the suite has it for the bundled questions."""
OPTIONS = ("--engine=transformers", "--model=reference", "--quantization=none", "--dataset=synthetic")
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *OPTIONS)
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
VERSION_1 = {"strict": "####@1", "flexible": "last-number@1"}
"""The versions of the readings that are lm-eval's; later ones read more."""
READINGS = {"strict-match": "strict", "flexible-extract": "flexible"}

GENERATING = f"""
import json
from pathlib import Path
from pytest_llminfer.observations.generation import Sampling


def test_generating(engine):
    folder = Path(__file__).parent
    prompts = json.loads((folder / "prompts.json").read_text())
    generated = engine.generate(prompts, Sampling(max_tokens={MAX_TOKENS}))
    (folder / "generated.json").write_text(json.dumps([list(each.token_ids) for each in generated]))
"""

RECORDING = """
import json, os
from lm_eval.__main__ import cli_evaluate
from lm_eval.models.huggingface import HFLM

generate = HFLM._model_generate


def recording(self, context, *args, **kwargs):
    with open(os.environ["LM_EVAL_SIDE_IDS"], "a") as file:
        for row, mask in zip(context.tolist(), kwargs["attention_mask"].tolist(), strict=True):
            print(json.dumps([token for token, counts in zip(row, mask, strict=True) if counts]), file=file)
    return generate(self, context, *args, **kwargs)


HFLM._model_generate = recording
cli_evaluate()
"""
"""lm-eval's own command, which also notes the token ids that its model is given."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How both sides are run. batch_size: of lm-eval, a number or ``auto``; dtype: a key of ``DTYPES``."""

    batch_size: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Right answers of each side by reading, of n; same_texts: answers that are equal to the letter."""

    n: int
    theirs: dict[str, int]
    ours: dict[str, int]
    same_texts: int


class LmEval:
    """lm-eval's command on ``problems`` in one form of prompt. Its files lie in ``folder``."""

    def __init__(self, python: Path, folder: Path, form: PromptForm, problems: Sequence[Problem]) -> None:
        self.python, self.folder, self.form = python, folder, form
        self.task = f"llminfer_{form.name.replace('-', '_')}"
        folder.mkdir()
        files = {"test": problems, "train": load_examples(SYNTHETIC, shots=form.shots) or problems[:1]}
        for split, kept in files.items():
            rows = ({"id": each.id, "question": each.question, "answer": each.answer} for each in kept)
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        gsm8k = subprocess.check_output(
            [str(python), "-c", "import lm_eval; print(lm_eval.__path__[0] + '/tasks/gsm8k/gsm8k.yaml')"]
        )
        settings = {
            "include": gsm8k.decode().strip(),
            "task": self.task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(folder / f"{split}.jsonl") for split in files}},
            "doc_to_text": form.question.replace("{question}", "{{question}}"),
            "num_fewshot": form.shots,
            "fewshot_config": {"sampler": "first_n"},
            "generation_kwargs": {"until": list(form.stop), "do_sample": False, "max_gen_toks": MAX_TOKENS},
        }
        # YAML reads JSON.
        (folder / f"{self.task}.yaml").write_text(json.dumps(settings, indent=2))

    def arguments(self, model: Model, setting: Setting) -> list[str]:
        """Of lm-eval's command."""
        chat = ["--apply_chat_template"] * self.form.chat
        named = ["--model", "hf", "--model_args", f"pretrained={model.path},dtype={DTYPES[setting.dtype]}", "--device", "cpu"]
        return [*named, "--batch_size", setting.batch_size, "--tasks", self.task, "--include_path", str(self.folder), *chat]

    def answers(
        self, model: Model, setting: Setting, variables: dict[str, str]
    ) -> tuple[list[list[int]], dict[str, dict[str, Any]]]:
        """The token ids of all prompts, in lm-eval's order; its samples by question id and filter."""
        ids, output = self.folder / "ids.jsonl", self.folder / "output"
        arguments = [*self.arguments(model, setting), "--log_samples", "--output_path", str(output)]
        run([str(self.python), "-c", RECORDING, *arguments], {**variables, "LM_EVAL_SIDE_IDS": str(ids)})
        (logged,) = output.rglob("samples_*.jsonl")
        samples: dict[str, dict[str, Any]] = {}
        for line in logged.read_text().splitlines():
            sample = json.loads(line)
            samples.setdefault(sample["doc"]["id"], {})[sample["filter"]] = sample
        return [json.loads(line) for line in ids.read_text().splitlines()], samples


def run(command: Sequence[str], variables: dict[str, str]) -> tuple[float, str]:
    """Seconds of the clock and standard output; a command that fails ends the benchmark."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **variables}, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(
            f"{' '.join(command[:6])} … ended with status {done.returncode}:\n{(done.stdout + done.stderr)[-LAST_CHARACTERS:]}"
        )
    return seconds, done.stdout


def generate(folder: Path, prompts: Sequence[list[int]], pytest: Sequence[str], env: dict[str, str]) -> list[list[int]]:
    """The token ids that our engine generates for ``prompts``, in their order."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_generating.py").write_text(GENERATING)
    (folder / "prompts.json").write_text(json.dumps(prompts))
    run([*pytest, f"--rootdir={folder}", "-c", str(folder / "pytest.ini"), str(folder / "test_generating.py")], env)
    generated: list[list[int]] = json.loads((folder / "generated.json").read_text())
    return generated


def compare(theirs: LmEval, model: Model, problems: Sequence[Problem], setting: Setting, env: dict[str, str]) -> Scores:
    """Ask both sides once; end the benchmark where prompts differ, or where one answer is worth another grade."""
    form, examples = theirs.form, load_examples(SYNTHETIC, shots=theirs.form.shots)
    texts = [form.word(problem.question, examples) for problem in problems]
    prompts = model.encode_many([model.render_chat(text) for text in texts] if form.chat else texts)
    given, samples = theirs.answers(model, setting, env)
    if sorted(given) != sorted(prompts):
        sys.exit(f"{form}: the token ids of the prompts differ")
    generated = generate(theirs.folder, prompts, [*PYTEST, f"--dtype={setting.dtype}"], env)
    found = Scores(len(problems), dict.fromkeys(READINGS, 0), dict.fromkeys(READINGS, 0), 0)
    same = 0
    for problem, tokens in zip(problems, generated, strict=True):
        ours, _ = form.read(model.decode(tokens))
        (their_text,) = samples[problem.id]["strict-match"]["resps"][0]
        same += their_text == ours
        for name, reading in READINGS.items():
            their_grade = samples[problem.id][name]["exact_match"] == 1
            if getattr(grade(problem, their_text, VERSION_1), reading) != their_grade:
                sys.exit(f"{form}: {problem.id} is graded {their_grade} by lm-eval ({name}) and otherwise by us:\n{their_text}")
            found.theirs[name] += their_grade
            found.ours[name] += getattr(grade(problem, ours, VERSION_1), reading)
    return Scores(found.n, found.theirs, found.ours, same)


def time_pairs(ours: Sequence[str], theirs: Sequence[str], pairs: int, env: dict[str, str]) -> list[tuple[float, float]]:
    """Seconds of our command and of theirs, in an order that alternates."""
    taken = []
    for pair in range(pairs):
        if pair % 2:
            second, (first, shown) = run(theirs, env)[0], run(ours, env)
        else:
            (first, shown), second = run(ours, env), run(theirs, env)[0]
        verdict = VERDICT.search(shown)
        if verdict is None:
            sys.exit(f"the suite came to no verdict:\n{shown[-LAST_CHARACTERS:]}")
        load = f"load average {os.getloadavg()[0]:.1f}"
        print(
            f"pair {pair + 1}: lm_eval {second:.2f} s over {first:.2f} s ({verdict[1]}), ratio {second / first:.2f}; {load}",
            flush=True,
        )
        taken.append((first, second))
    return taken


def measure(questions: int, pairs: int, threads: int, setting: Setting) -> list[Result]:
    """Ratios of lm-eval's time over ours, and both times; scores are printed on the way."""
    python, model = models(), Model("reference")
    problems = load(SYNTHETIC).ordered(ORDER_SEED)[:questions]
    how = f"{setting.dtype}, batches of {setting.batch_size}, {threads} threads, {questions} questions"
    print(f"lm-eval {LM_EVAL}, {how}; {machine()}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
        sides = {}
        for form, named in FORMS.items():
            asked = problems[:FEW_SHOT_QUESTIONS] if named.shots else problems
            theirs = sides[form] = LmEval(python, folder / form, named, asked)
            scores = compare(theirs, model, asked, setting, env)
            for reading in READINGS:
                there, here = scores.theirs[reading] / scores.n, scores.ours[reading] / scores.n
                print(f"{form}, {reading}: lm-eval {there:.2%}, here {here:.2%}, n={scores.n}", flush=True)
            alike = f"{scores.same_texts} of {scores.n} answers equal to the letter"
            print(f"{form}: prompts equal id by id; all answers of lm-eval graded alike; {alike}", flush=True)
        if not pairs:
            return []
        suite = [*PYTEST, f"--dtype={setting.dtype}", "suites/test_accuracy.py"]
        suite += [f"--gsm8k-questions={questions}", f"--baselines={folder / 'baselines'}"]
        run([*suite, "--update-baselines"], env)
        command = [str(python), "-m", "lm_eval", *sides["zero-shot"].arguments(model, setting)]
        taken = time_pairs(suite, command, pairs, env)
    first, second = (statistics.median(side) for side in zip(*taken, strict=True))
    ratios = [theirs / ours for ours, theirs in taken]
    spread = f"n={pairs} pairs; {min(ratios):.2f} to {max(ratios):.2f}"
    return [
        Result("time to a verdict over time of lm_eval", 1 / statistics.median(ratios), "", 1.0, f"lm-eval over ours: {spread}"),
        Result("pytest suites/test_accuracy.py", first, " s", None, f"n={pairs}"),
        Result("lm_eval --model hf", second, " s", None, f"n={pairs}"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="0: only prompts and scores")
    parser.add_argument("--threads", type=int, default=THREADS, help="OMP_NUM_THREADS of both sides")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="in bf16 a near-tie may fall otherwise in another batch")
    parser.add_argument("--batch-size", default=str(BATCH_SIZE), help="of lm-eval: a number or auto")
    given = parser.parse_args()
    finish(measure(given.questions, given.pairs, given.threads, Setting(given.batch_size, given.dtype)))
