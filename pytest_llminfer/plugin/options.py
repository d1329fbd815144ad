"""Command line and ini options, resolved once into plain data that remembers where each value came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pytest

from pytest_llminfer.plugin import option_values as values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")


class _Option(NamedTuple):
    """One option: ``--name`` on the command line, ``llminfer_name`` as ini; ``read`` turns its text into a value."""

    flag: str
    ini: str
    default: str
    help: str
    metavar: str


class _Flag(NamedTuple):
    """One option that is on or off: ``--name`` on the command line, ``llminfer_name`` as ini."""

    flag: str
    ini: str
    help: str


MATRIX = (
    _Option(
        "--engine",
        "llminfer_engine",
        "transformers",
        "engines under test: NAME here, NAME@/path/to/python there, NAME==VERSION in an environment made for it, openai@URL",
        "NAME,…",
    ),
    _Option(
        "--model", "llminfer_model", "reference", "what is served: a folder, a hub id, a bundled shape, or 'reference'", "MODEL,…"
    ),
    _Option("--weights", "llminfer_weights", "real", "real, or dummy: random weights of the model's shape", "WEIGHTS,…"),
    _Option("--dtype", "llminfer_dtype", "auto", "auto, bf16, fp16, fp32", "DTYPE,…"),
    _Option(
        "--quantization",
        "llminfer_quantization",
        "none",
        "how weights are stored: none, int8, nf4, gptq, w8a8, q8_0, …",
        "FORMAT,…",
    ),
    _Option("--kv-dtype", "llminfer_kv_dtype", "auto", "dtype of the KV cache", "DTYPE,…"),
    _Option("--tp", "llminfer_tp", "", "tensor parallel sizes", "N,…"),
    _Option("--pp", "llminfer_pp", "", "pipeline parallel sizes", "N,…"),
    _Option("--dp", "llminfer_dp", "", "numbers of replicas", "N,…"),
    _Option("--replication", "llminfer_replication", "workers", "dp as workers of ours, or native: the engine's own", "KIND,…"),
    _Option(
        "--gpus",
        "llminfer_gpus",
        "",
        "alone: compare one GPU, dp=N and tp=N; beside --tp, --pp or --dp, which then say what a cell takes: a multiple of that",
        "N",
    ),
)
OTHER = (
    _Option("--engine-args", "llminfer_engine_args", "", "further arguments of the engine, as JSON", "JSON"),
    _Option(
        "--dataset",
        "llminfer_dataset",
        "synthetic",
        "synthetic, openai/gsm8k, or a JSONL or Parquet file in GSM8K's format",
        "NAME",
    ),
    _Option(
        "--gsm8k-questions",
        "llminfer_gsm8k_questions",
        "",
        "how many questions are asked, or 'all'; unless given all on a GPU, 300 on a CPU and of a server that runs elsewhere",
        "N",
    ),
    _Option(
        "--gsm8k-form", "llminfer_gsm8k_form", "zero-shot", "how questions are put: zero-shot, or the published 5-shot", "FORM"
    ),
    _Option(
        "--gsm8k-concurrency", "llminfer_gsm8k_concurrency", "", "questions in flight at once; an eighth of all unless given", "N"
    ),
    _Option("--gsm8k-runs", "llminfer_gsm8k_runs", "4", "how often each question is asked for a baseline", "K"),
    _Option(
        "--accuracy-margin",
        "llminfer_accuracy_margin",
        "",
        "the drop in points that a PASS rules out; 2, or 4 for four bits against sixteen, unless given",
        "POINTS",
    ),
    _Option(
        "--divergence-limits",
        "llminfer_divergence_limits",
        "",
        'limits of your own by kind of cell, as JSON: {"4-bit": [0.2, 0.85]} is KL in nats and the share of the same top-1',
        "JSON",
    ),
    _Option("--baselines", "llminfer_baselines", "baselines", "folder of recorded expectations, relative to the root", "DIR"),
    _Option("--llminfer-report", "llminfer_report", "", "folder for results.json: all that the session found, as data", "DIR"),
    _Option("--llminfer-timeout", "llminfer_timeout", "900", "seconds of silence after which an engine counts as hung", "SECONDS"),
)
FLAGS = (
    _Flag("--serve", "llminfer_serve", "start each engine's own server and ask it over HTTP"),
    _Flag("--full", "llminfer_full", "ask all questions, though the verdict is reached earlier"),
    _Flag("--run-history", "llminfer_run_history", "add this run's evidence on accuracy to the run history beside the baselines"),
    _Flag(
        "--kv-variants",
        "llminfer_kv_variants",
        "start each engine again with other pools, chunks and cache dtypes, and compare",
    ),
    _Flag("--llminfer-strict", "llminfer_strict", "a missing baseline or an inconclusive verdict fails"),
)


class Options(NamedTuple):
    """Every setting, resolved. ``sources`` says for each name whether the command line, the ini file or the default gave it."""

    engine: tuple[str, ...]
    model: tuple[str, ...]
    weights: tuple[str, ...]
    dtype: tuple[str, ...]
    quantization: tuple[str, ...]
    kv_dtype: tuple[str, ...]
    tp: tuple[int, ...]
    pp: tuple[int, ...]
    dp: tuple[int, ...]
    replication: tuple[str, ...]
    serve: bool
    gpus: int | None
    engine_args: dict[str, Any]
    dataset: str
    gsm8k_questions: int | None
    gsm8k_form: str
    gsm8k_concurrency: int | None
    gsm8k_runs: int
    accuracy_margin: float | None
    full: bool
    run_history: bool
    divergence_limits: dict[str, tuple[float, float]]
    checkpoint: tuple[str, ...]
    baselines: Path
    timeout: float
    kv_variants: bool
    update_baselines: str
    strict: bool
    sources: dict[str, str]


STASH = pytest.StashKey[Options]()


def add_options(parser: pytest.Parser) -> None:
    """Register every option; nothing is computed here."""
    group = parser.getgroup("llminfer", "LLM inference regression tests")
    for option in (*MATRIX, *OTHER):
        group.addoption(
            option.flag, dest=option.ini, default=None, metavar=option.metavar, help=f"{option.help} (ini: {option.ini})"
        )
        parser.addini(option.ini, option.help, type="string", default=option.default)
    group.addoption(
        "--checkpoint",
        dest="llminfer_checkpoint",
        action="append",
        default=None,
        metavar="PATH",
        help="a folder of safetensors or a .gguf file whose headers are judged, without an engine; repeatable "
        "(ini: llminfer_checkpoint)",
    )
    parser.addini("llminfer_checkpoint", "folders of safetensors or .gguf files whose headers are judged", type="args", default=[])
    group.addoption(
        "--update-baselines",
        dest="llminfer_update_baselines",
        nargs="?",
        const="all",
        default=None,
        choices=("all", "new"),
        help="record what this run observes: all of it, or with =new only what has no baseline yet",
    )
    for flag in FLAGS:
        group.addoption(flag.flag, dest=flag.ini, action="store_true", default=None, help=f"{flag.help} (ini: {flag.ini})")
        parser.addini(flag.ini, flag.help, type="bool", default=False)


def resolve(config: pytest.Config) -> Options:
    """The settings of this session.

    Raises:
        pytest.UsageError: a value that cannot be read.
    """
    sources: dict[str, str] = {}

    def text(option: _Option) -> str:
        given = config.getoption(option.ini)
        name = option.ini.removeprefix("llminfer_")
        if given is not None:
            sources[name] = "command line"
            return str(given)
        value = str(config.getini(option.ini))
        sources[name] = "default" if value == option.default else "ini"
        return value

    by_name = {option.ini.removeprefix("llminfer_"): (option, text(option)) for option in (*MATRIX, *OTHER)}
    words = {name: tuple(word.strip() for word in value.split(",") if word.strip()) for name, (_, value) in by_name.items()}

    def numbers(name: str) -> tuple[int, ...]:
        return tuple(_read(by_name[name][0].flag, word, values.positive) for word in words[name])

    def is_on(ini: str) -> bool:
        return bool(config.getoption(ini) or config.getini(ini))

    questions, at_once = by_name["gsm8k_questions"][1], by_name["gsm8k_concurrency"][1]
    gpus = numbers("gpus")
    return Options(
        engine=tuple(_read("--engine", word, values.engine) for word in words["engine"]),
        model=words["model"],
        weights=words["weights"],
        dtype=words["dtype"],
        quantization=words["quantization"],
        kv_dtype=words["kv_dtype"],
        tp=numbers("tp"),
        pp=numbers("pp"),
        dp=numbers("dp"),
        replication=tuple(_read("--replication", word, values.replication) for word in words["replication"]),
        serve=is_on("llminfer_serve"),
        gpus=_only(gpus),
        engine_args=_read("--engine-args", by_name["engine_args"][1] or "{}", values.json_object),
        dataset=by_name["dataset"][1],
        gsm8k_questions=_read("--gsm8k-questions", questions, values.questions) if questions else None,
        gsm8k_form=_read("--gsm8k-form", by_name["gsm8k_form"][1], values.form),
        gsm8k_concurrency=_read("--gsm8k-concurrency", at_once, values.positive) if at_once else None,
        gsm8k_runs=_read("--gsm8k-runs", by_name["gsm8k_runs"][1], values.runs),
        accuracy_margin=_read("--accuracy-margin", margin, values.points) if (margin := by_name["accuracy_margin"][1]) else None,
        full=is_on("llminfer_full"),
        run_history=is_on("llminfer_run_history"),
        divergence_limits=_read("--divergence-limits", by_name["divergence_limits"][1] or "{}", values.limits),
        checkpoint=tuple(dict.fromkeys(config.getoption("llminfer_checkpoint") or config.getini("llminfer_checkpoint"))),
        baselines=config.rootpath / by_name["baselines"][1],
        timeout=_read("--llminfer-timeout", by_name["timeout"][1], values.seconds),
        kv_variants=is_on("llminfer_kv_variants"),
        update_baselines=config.getoption("llminfer_update_baselines") or "",
        strict=is_on("llminfer_strict"),
        sources=sources,
    )


def _only(gpus: tuple[int, ...]) -> int | None:
    """The one number, None where none was given."""
    if len(gpus) > 1:
        raise pytest.UsageError("--gpus takes one number, of all GPUs to use; for several sizes say --dp=1,2 or --tp=1,2")
    return gpus[0] if gpus else None


def _read(flag: str, word: str, convert: Callable[[str], T]) -> T:
    """What ``convert`` makes of ``word``; its ValueError becomes a usage error that begins with the option."""
    try:
        return convert(word)
    except ValueError as error:
        raise pytest.UsageError(f"{flag}: {error}") from None
