"""What the plugin adds to pytest's command line and ini file; nothing is read here.

Every option has a name that is ours alone, ``--llminfer-engine``, and most have a short one, ``--engine``, which is registered only
after the project's conftest.py files and all other plugins have registered theirs, and only where none of them has that name.
A session that names none of these options registers none: it pays only for the ini file's names.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

PREFIX = "--llminfer-"
SPOKEN = pytest.StashKey[dict[str, str]]()
"""For each option of this command line, by its ini name, the flag as it was written."""
OURS = pytest.StashKey[frozenset[str]]()
"""The flags of this command line that are registered as ours."""
PARSER = pytest.StashKey[pytest.Parser]()
"""What knows the flags of the project and of other plugins."""


class Option(NamedTuple):
    """One option: its flag on the command line, ``llminfer_…`` in the ini file.

    Attributes:
        flag: The short flag (``--engine``), or the canonical one where there is no short one.
        help: Its line in ``--help``.
        metavar: Placeholder of its value in the help; empty where the option is on or off, or takes one of ``choices``.
        default: The text that counts where the option is not given; empty for none.
        choices: What may follow the flag, the first of them where nothing does; such an option is for the command line only. Empty
            for others.
        repeatable: Whether it may be given several times.
    """

    flag: str
    help: str
    metavar: str = ""
    default: str = ""
    choices: tuple[str, ...] = ()
    repeatable: bool = False

    @property
    def canonical(self) -> str:
        """The canonical name, ``--llminfer-…``, which no other plugin uses."""
        return self.flag if self.flag.startswith(PREFIX) else PREFIX + self.flag[2:]

    @property
    def ini(self) -> str:
        """The name in the ini file, and in pytest's parsed options."""
        return self.canonical[2:].replace("-", "_")

    @property
    def name(self) -> str:
        """The name among the session's settings and their sources."""
        return self.ini.removeprefix("llminfer_")

    def takes(self, word: str) -> bool:
        """Whether a word that follows the flag is its value."""
        return bool(self.metavar) or word in self.choices


class Group(NamedTuple):
    """Options that the help shows together.

    Attributes:
        title: Heading of the group.
        example: A command line that uses it.
        options: Its options, in the order of the help.
    """

    title: str
    example: str
    options: tuple[Option, ...]


DEFAULT_ENGINE = "transformers"
GROUPS = (
    Group(
        "llminfer: cells, the product of these lists",
        "pytest --engine=vllm --dtype=bf16,fp16 suites/",
        (
            Option(
                "--engine",
                "engines under test: NAME here, NAME@/path/to/python there, NAME==VERSION in an environment made for it, "
                "openai@URL",
                "NAME,…",
                DEFAULT_ENGINE,
            ),
            Option("--model", "what is served: a folder, a hub id, a bundled shape, or 'reference'", "MODEL,…", "reference"),
            Option(
                "--llminfer-model-name",
                "what baselines call each --model, in its order, in place of its folder's name",
                "NAME,…",
            ),
            Option("--weights", "real, or dummy: random weights of the model's shape", "WEIGHTS,…", "real"),
            Option("--dtype", "auto, bf16, fp16, fp32", "DTYPE,…", "auto"),
            Option("--quantization", "how weights are stored: none, int8, nf4, gptq, w8a8, q8_0, …", "FORMAT,…", "none"),
            Option("--kv-dtype", "dtype of the KV cache", "DTYPE,…", "auto"),
        ),
    ),
    Group(
        "llminfer: parallelism",
        "pytest --engine=vllm --gpus=2 suites/test_parallelism.py",
        (
            Option("--tp", "tensor parallel sizes", "N,…"),
            Option("--pp", "pipeline parallel sizes", "N,…"),
            Option("--dp", "numbers of replicas", "N,…"),
            Option("--replication", "workers: dp separate workers; native: the engine's own data parallelism", "KIND,…", "workers"),
            Option(
                "--gpus",
                "alone: compare one GPU, dp=N and tp=N; beside --tp, --pp or --dp, which then say what a cell takes: "
                "a multiple of that",
                "N",
            ),
        ),
    ),
    Group(
        "llminfer: engines",
        """pytest --engine=vllm --engine-args='{"enable_prefix_caching": false}' suites/""",
        (
            Option("--engine-args", "further arguments of the engine, as JSON", "JSON"),
            Option("--serve", "start each engine's own server and ask it over HTTP"),
            Option("--kv-variants", "start each engine again with other pools, chunks and cache dtypes, and compare"),
            Option("--llminfer-timeout", "seconds of silence after which an engine counts as hung", "SECONDS", "900"),
        ),
    ),
    Group(
        "llminfer: accuracy",
        "pytest --dataset=openai/gsm8k --gsm8k-questions=all suites/test_accuracy.py",
        (
            Option("--dataset", "synthetic, openai/gsm8k, or a JSONL or Parquet file in GSM8K's format", "NAME", "synthetic"),
            Option(
                "--gsm8k-questions",
                "how many questions are asked at most, or 'all'; unless given all on a GPU, 1,000 on a CPU and of a server "
                "that runs elsewhere",
                "N",
            ),
            Option("--gsm8k-form", "how questions are put: zero-shot, or the published 5-shot", "FORM", "zero-shot"),
            Option("--gsm8k-concurrency", "questions in flight at once; unless given an eighth of all on a GPU, else 32", "N"),
            Option("--gsm8k-order", "seed of the order in which questions are asked; drawn anew each session unless given", "SEED"),
            Option("--gsm8k-runs", "how often each question is asked for a baseline", "K", "4"),
            Option(
                "--accuracy-margin",
                "the drop in points that a PASS rules out; unless given 2, or 6 for four bits against sixteen, and more where the "
                "record supports no less",
                "POINTS",
            ),
            Option("--full", "ask all questions, though the verdict is reached earlier"),
            Option("--run-history", "add this run's evidence on accuracy to the run history beside the baselines"),
        ),
    ),
    Group(
        "llminfer: divergence",
        """pytest --divergence-limits='{"4-bit": [0.2, 0.85]}' suites/test_divergence.py""",
        (
            Option(
                "--divergence-limits",
                'limits of your own by kind of cell, as JSON: {"4-bit": [0.2, 0.85]} is KL in nats and the share of the same top-1',
                "JSON",
            ),
        ),
    ),
    Group(
        "llminfer: checkpoints on disk",
        "pytest --checkpoint=/models/my-llama-gptq suites/test_checkpoint.py",
        (
            Option(
                "--checkpoint",
                "a folder of safetensors or a .gguf file whose headers are judged, without an engine; repeatable",
                "PATH",
                repeatable=True,
            ),
        ),
    ),
    Group(
        "llminfer: baselines and verdicts",
        "pytest --update-baselines=new suites/",
        (
            Option("--baselines", "folder of recorded expectations, relative to the root", "DIR", "baselines"),
            Option(
                "--update-baselines",
                "record what this run observes: all of it, with =new only what has no baseline yet, with =replace over records of "
                "other weights too",
                choices=("all", "new", "replace"),
            ),
            Option(
                "--llminfer-report",
                "folder for results.json, all that the session found, as data, and answers.jsonl, what was answered",
                "DIR",
            ),
            Option("--llminfer-strict", "a missing baseline or an inconclusive verdict fails"),
        ),
    ),
)
OPTIONS = tuple(option for group in GROUPS for option in group.options)
BY_FLAG = {flag: option for option in OPTIONS for flag in (option.flag, option.canonical)}


def add_ini(parser: pytest.Parser) -> None:
    """Register the names of the ini file."""
    for option in OPTIONS:
        if option.repeatable:
            parser.addini(option.ini, option.help, type="args", default=[])
        elif option.metavar:
            parser.addini(option.ini, option.help, default=option.default)
        elif not option.choices:
            parser.addini(option.ini, option.help, type="bool", default=False)


def given(args: Sequence[str]) -> dict[str, Option]:
    """Those of our options that stand on a command line, by the flag as written; all of them where help is asked for."""
    words = args[: args.index("--")] if "--" in args else args
    if "-h" in words or "--help" in words:
        return BY_FLAG
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    return {flag: BY_FLAG[flag] for flag in flags if flag in BY_FLAG}


def is_given(config: pytest.Config) -> bool:
    """Whether the command line or the ini file says anything for this plugin."""
    return SPOKEN in config.stash or any(
        config.getini(option.ini) != ([] if option.repeatable else option.default if option.metavar else False)
        for option in OPTIONS
        if not option.choices
    )


def is_taken(parser: pytest.Parser, flag: str) -> bool:
    """Whether the project or another plugin has an option of this name."""
    try:
        return flag not in parser.parse_known_and_unknown_args([flag])[1]
    except pytest.UsageError:  # a value is missing: so the name is known
        return True


def add_options(parser: pytest.Parser, flags: dict[str, Option]) -> None:
    """Register every option by its canonical name, and by its short one where ``flags`` has that."""
    for title, example, options in GROUPS:
        group = parser.getgroup(title, f"{title} ({example})")
        for option in options:
            names = [option.canonical] + [option.flag] * (option.flag in flags and option.flag != option.canonical)
            in_ini = "" if option.choices else f" (ini: {option.ini})"
            group.addoption(*names, dest=option.ini, default=None, help=option.help + in_ini, **_action(option))


def register_last(
    config: pytest.Config, parser: pytest.Parser, args: Sequence[str], written: dict[str, Option]
) -> Generator[None, object, object]:
    """Register options when the project's conftest.py files, which are loaded meanwhile, have registered theirs.

    written: what :func:`given` found in ``args``.
    """
    paths = config.known_args_namespace.file_or_dir
    for flag, word in pairwise(args):
        # The value of a flag that is not registered yet: pytest takes it for a path, whose conftest.py it would load.
        if flag in written and word in paths and written[flag].takes(word) and not is_taken(parser, flag):
            paths.remove(word)
    try:
        return (yield)
    finally:
        ours = {flag: option for flag, option in written.items() if flag == option.canonical or not is_taken(parser, flag)}
        config.stash[SPOKEN] = {option.ini: flag for flag, option in ours.items()}
        config.stash[OURS] = frozenset(ours)
        add_options(parser, ours)


def _action(option: Option) -> dict[str, object]:
    """What argparse makes of the option."""
    if option.choices:
        return {"nargs": "?", "const": option.choices[0], "choices": option.choices}
    if option.metavar:
        return {"metavar": option.metavar, "action": "append" if option.repeatable else "store"}
    return {"action": "store_true"}
