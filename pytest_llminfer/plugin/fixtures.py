"""The fixture chain, each link of which a project may override in its conftest.py.

``engine_spec`` (session, one value a cell) → ``model``, ``engine_args`` → ``launch_engine`` → ``engine`` (session, loaded once)
→ ``judge``, ``baseline``, ``throughput`` (function).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.plugin import judging, matrix, options, prestart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.baselines.notes import Note
    from pytest_llminfer.datasets.load import Dataset
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.accuracy.observe import Answered, QuestionSet
    from pytest_llminfer.families.accuracy.run import AccuracyRun
    from pytest_llminfer.families.divergence.observe import Divergence, TeacherForced
    from pytest_llminfer.families.execution_modes.variants import KVVariants
    from pytest_llminfer.families.kv_equivalence.observe import KVEquivalence
    from pytest_llminfer.families.memory.observe import MemoryProfile
    from pytest_llminfer.families.parallelism.observe import OneGpu, ParallelismTable, SingleAnswers
    from pytest_llminfer.families.throughput.observe import Throughput
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.hardware import Hardware
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.spec import EngineSpec


SINGLE_ANSWERS = pytest.StashKey["SingleAnswers"]()


def single_answers(config: pytest.Config) -> SingleAnswers:
    """What the session's cells on one GPU answered so far."""
    from pytest_llminfer.families.parallelism.observe import SingleAnswers

    return config.stash.setdefault(SINGLE_ANSWERS, SingleAnswers())


@pytest.fixture(scope="session")
def engine_spec(request: pytest.FixtureRequest) -> EngineSpec:
    """The cell under test."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest) -> str:
    """The path of a checkpoint that ``--checkpoint`` names; no engine is started for it."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def model(engine_spec: EngineSpec) -> Model:
    """What is served: files, configuration, tokenizer, chat template, shape arithmetic."""
    from pytest_llminfer.models.model import Model

    return Model(engine_spec.model, weights=engine_spec.weights)


@pytest.fixture(scope="session")
def engine_args(pytestconfig: pytest.Config) -> Mapping[str, Any]:
    """Further arguments of the engine, from ``--engine-args``; override it to give a project's own."""
    return pytestconfig.stash[options.STASH].session.engine_args


@pytest.fixture(scope="session")
def launch_engine(
    engine_spec: EngineSpec, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Engine]]:
    """Start engines: called with (spec, model, engine_args, variables); all are ended with the cell."""
    from pytest_llminfer.plugin.launching import Launcher

    launcher = Launcher(pytestconfig, tmp_path_factory.mktemp(f"llminfer-{engine_spec.engine}"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def engine(
    engine_spec: EngineSpec, model: Model, engine_args: Mapping[str, Any], launch_engine: Callable[..., Engine]
) -> Iterator[Engine]:
    """The engine of this cell, loaded once for all its tests."""
    loaded = launch_engine(engine_spec, model, engine_args)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def greedy(engine: Engine, pytestconfig: pytest.Config) -> Greedy:
    """The engine's own greedy answers to fixed prompts, in one batch and one by one."""
    from pytest_llminfer.families.tokens.observe import Greedy

    answers = engine.once(Greedy.ask)
    single_answers(pytestconfig).keep_greedy(engine.spec, answers)
    return answers


@pytest.fixture(scope="module")
def kv_variants(
    engine: Engine, greedy: Greedy, launch_engine: Callable[..., Engine], pytestconfig: pytest.Config
) -> Iterator[KVVariants]:
    """This cell started otherwise, with an engine of its own for each variant, where ``--kv-variants`` asks for that."""
    from pytest_llminfer.families.execution_modes.variants import KVVariants

    variants = KVVariants(engine, greedy, launch_engine, asked_for=pytestconfig.stash[options.STASH].execution_modes.kv_variants)
    yield variants
    variants.close()


@pytest.fixture
def kv_equivalence(engine: Engine, judge: judging.Judge) -> KVEquivalence:
    """Every way through this cell's KV cache: ``structure()``, ``first_layer(prompts)`` and ``window()``, each judged."""
    from pytest_llminfer.families.kv_equivalence.observe import KVEquivalence

    return KVEquivalence(engine, judge)


@pytest.fixture(scope="session")
def answered(engine: Engine, gsm8k: QuestionSet, pytestconfig: pytest.Config) -> Answered:
    """The graded answers of this cell, and how long they took: to all of the session's questions where cells are split over
    several GPUs and compared, otherwise to those that the verdict on accuracy needed.
    """
    prestart.settle(pytestconfig)
    found = gsm8k.asking(engine).some()
    single_answers(pytestconfig).keep_graded(engine.spec, found)
    return found


@pytest.fixture
def one_gpu(engine: Engine, pytestconfig: pytest.Config) -> OneGpu:
    """What the same cell answered on one GPU, earlier in this session."""
    from pytest_llminfer.families.parallelism.observe import OneGpu

    return OneGpu(single_answers(pytestconfig), engine.spec)


@pytest.fixture(scope="session")
def hardware() -> Hardware:
    """This machine's accelerators, or its processor."""
    from pytest_llminfer.hardware import detect

    return detect()


@pytest.fixture
def judge(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> judging.Judge:
    """Turns a verdict into this test's outcome."""
    return judging.Judge(request.node, pytestconfig.stash[options.STASH])


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Takes what this test found to the report of the session."""
    return judging.note_of(request.node)


@pytest.fixture
def baseline(pytestconfig: pytest.Config, engine: Engine, hardware: Hardware, judge: judging.Judge, note: Note) -> Baseline:
    """The recorded expectations of this test's cell."""
    from pytest_llminfer.baselines.bundled import with_bundled
    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.plugin.baselines import open_store, recording, session_records

    return Baseline(
        engine=engine,
        source=with_bundled(open_store(pytestconfig)),
        session=session_records(pytestconfig),
        hardware=hardware,
        recording=recording(pytestconfig),
        judge=judge,
        note=note,
    )


@pytest.fixture
def parallelism_table(engine: Engine, baseline: Baseline, note: Note) -> ParallelismTable:
    """Time and accuracy of this cell, beside those of the others."""
    from pytest_llminfer.families.parallelism.observe import ParallelismTable

    return ParallelismTable(engine.spec, baseline, note)


@pytest.fixture
def memory_profile(engine: Engine, baseline: Baseline, note: Note) -> MemoryProfile:
    """Predicted and measured memory of this cell, line by line."""
    from pytest_llminfer.families.memory.observe import MemoryProfile

    return MemoryProfile(engine, baseline, note)


@pytest.fixture(scope="session")
def dataset(pytestconfig: pytest.Config) -> Dataset:
    """The questions that ``--dataset`` names."""
    from pytest_llminfer.datasets.load import load

    return load(pytestconfig.stash[options.STASH].accuracy.dataset)


@pytest.fixture(scope="session")
def teacher_forced(engine: Engine, dataset: Dataset) -> TeacherForced:
    """What this cell predicts at fixed positions of fixed texts."""
    from pytest_llminfer.families.divergence.observe import TeacherForced

    return engine.once(TeacherForced.ask, dataset)


@pytest.fixture
def divergence(teacher_forced: TeacherForced, baseline: Baseline, pytestconfig: pytest.Config) -> Divergence:
    """What this cell predicts at fixed positions, and what was recorded there."""
    from pytest_llminfer.families.divergence.observe import Divergence

    return Divergence(teacher_forced, baseline, pytestconfig.stash[options.STASH].divergence.limits)


@pytest.fixture(scope="session")
def gsm8k(pytestconfig: pytest.Config, dataset: Dataset, model: Model) -> QuestionSet:
    """The questions of this session, worded for this cell's model and ready to be asked."""
    from pytest_llminfer.families.accuracy.observe import QuestionSet

    settings = pytestconfig.stash[options.STASH].accuracy
    return QuestionSet(
        dataset,
        model,
        settings.questions,
        source=settings.dataset,
        runs=settings.runs,
        form=settings.form,
        concurrency=settings.concurrency,
        whole=any(cell.parallel for cell in pytestconfig.stash[matrix.CELLS]),
    )


@pytest.fixture
def accuracy(
    engine: Engine, gsm8k: QuestionSet, baseline: Baseline, judge: judging.Judge, note: Note, pytestconfig: pytest.Config
) -> AccuracyRun:
    """This cell's accuracy beside its own record."""
    return _accuracy(pytestconfig, engine, gsm8k, baseline, judge, note, unquantized=False)


@pytest.fixture
def unquantized_accuracy(
    engine: Engine, gsm8k: QuestionSet, baseline: Baseline, judge: judging.Judge, note: Note, pytestconfig: pytest.Config
) -> AccuracyRun:
    """A quantized cell's accuracy beside the record of the same engine with unquantized weights."""
    if engine.spec.quantization == "none":
        pytest.skip(f"{engine.spec} is not quantized")
    return _accuracy(pytestconfig, engine, gsm8k, baseline, judge, note, unquantized=True)


def _accuracy(
    config: pytest.Config,
    engine: Engine,
    questions: QuestionSet,
    baseline: Baseline,
    judge: judging.Judge,
    note: Note,
    *,
    unquantized: bool,
) -> AccuracyRun:
    from pytest_llminfer.families.accuracy.run import AccuracyRun, tests_of

    settings = config.stash[options.STASH].accuracy
    cells = config.stash[matrix.CELLS]
    tests = tests_of(cells)
    return AccuracyRun(engine, questions, baseline, judge=judge, note=note, settings=settings, tests=tests, unquantized=unquantized)


@pytest.fixture
def throughput(engine: Engine, benchmark: Any, pytestconfig: pytest.Config) -> Throughput:
    """Measures this cell's speed through pytest-benchmark."""
    from pytest_llminfer.families.throughput.observe import Throughput

    prestart.settle(pytestconfig)
    return Throughput(engine, benchmark)
