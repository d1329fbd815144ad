"""What the plugin adds to pytest's command line and ini file; nothing is read here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pytest


class Option(NamedTuple):
    """One option: ``--name`` on the command line, ``llminfer_name`` as ini; ``read`` turns its text into a value."""

    flag: str
    ini: str
    default: str
    help: str
    metavar: str


class Flag(NamedTuple):
    """One option that is on or off: ``--name`` on the command line, ``llminfer_name`` as ini."""

    flag: str
    ini: str
    help: str


DEFAULT_ENGINE = "transformers"
MATRIX = (
    Option(
        "--engine",
        "llminfer_engine",
        DEFAULT_ENGINE,
        "engines under test: NAME here, NAME@/path/to/python there, NAME==VERSION in an environment made for it, openai@URL",
        "NAME,…",
    ),
    Option(
        "--model", "llminfer_model", "reference", "what is served: a folder, a hub id, a bundled shape, or 'reference'", "MODEL,…"
    ),
    Option("--weights", "llminfer_weights", "real", "real, or dummy: random weights of the model's shape", "WEIGHTS,…"),
    Option("--dtype", "llminfer_dtype", "auto", "auto, bf16, fp16, fp32", "DTYPE,…"),
    Option(
        "--quantization",
        "llminfer_quantization",
        "none",
        "how weights are stored: none, int8, nf4, gptq, w8a8, q8_0, …",
        "FORMAT,…",
    ),
    Option("--kv-dtype", "llminfer_kv_dtype", "auto", "dtype of the KV cache", "DTYPE,…"),
    Option("--tp", "llminfer_tp", "", "tensor parallel sizes", "N,…"),
    Option("--pp", "llminfer_pp", "", "pipeline parallel sizes", "N,…"),
    Option("--dp", "llminfer_dp", "", "numbers of replicas", "N,…"),
    Option("--replication", "llminfer_replication", "workers", "dp as workers of ours, or native: the engine's own", "KIND,…"),
    Option(
        "--gpus",
        "llminfer_gpus",
        "",
        "alone: compare one GPU, dp=N and tp=N; beside --tp, --pp or --dp, which then say what a cell takes: a multiple of that",
        "N",
    ),
)
OTHER = (
    Option("--engine-args", "llminfer_engine_args", "", "further arguments of the engine, as JSON", "JSON"),
    Option(
        "--dataset",
        "llminfer_dataset",
        "synthetic",
        "synthetic, openai/gsm8k, or a JSONL or Parquet file in GSM8K's format",
        "NAME",
    ),
    Option(
        "--gsm8k-questions",
        "llminfer_gsm8k_questions",
        "",
        "how many questions are asked, or 'all'; unless given all on a GPU, 300 on a CPU and of a server that runs elsewhere",
        "N",
    ),
    Option("--gsm8k-form", "llminfer_gsm8k_form", "zero-shot", "how questions are put: zero-shot, or the published 5-shot", "FORM"),
    Option(
        "--gsm8k-concurrency", "llminfer_gsm8k_concurrency", "", "questions in flight at once; an eighth of all unless given", "N"
    ),
    Option("--gsm8k-runs", "llminfer_gsm8k_runs", "4", "how often each question is asked for a baseline", "K"),
    Option(
        "--accuracy-margin",
        "llminfer_accuracy_margin",
        "",
        "the drop in points that a PASS rules out; 2, or 4 for four bits against sixteen, unless given",
        "POINTS",
    ),
    Option(
        "--divergence-limits",
        "llminfer_divergence_limits",
        "",
        'limits of your own by kind of cell, as JSON: {"4-bit": [0.2, 0.85]} is KL in nats and the share of the same top-1',
        "JSON",
    ),
    Option("--baselines", "llminfer_baselines", "baselines", "folder of recorded expectations, relative to the root", "DIR"),
    Option("--llminfer-report", "llminfer_report", "", "folder for results.json: all that the session found, as data", "DIR"),
    Option("--llminfer-timeout", "llminfer_timeout", "900", "seconds of silence after which an engine counts as hung", "SECONDS"),
)
FLAGS = (
    Flag("--serve", "llminfer_serve", "start each engine's own server and ask it over HTTP"),
    Flag("--full", "llminfer_full", "ask all questions, though the verdict is reached earlier"),
    Flag("--run-history", "llminfer_run_history", "add this run's evidence on accuracy to the run history beside the baselines"),
    Flag(
        "--kv-variants",
        "llminfer_kv_variants",
        "start each engine again with other pools, chunks and cache dtypes, and compare",
    ),
    Flag("--llminfer-strict", "llminfer_strict", "a missing baseline or an inconclusive verdict fails"),
)


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
