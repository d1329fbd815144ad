"""What a test asks of a family: a fixture each, by names that are this plugin's alone; ``short_names`` has those that tests use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.plugin.session import cells_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.baselines.notes import Note
    from pytest_llminfer.datasets.load import Dataset
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.accuracy.observe import Answered, QuestionSet
    from pytest_llminfer.families.accuracy.run import AccuracyRun
    from pytest_llminfer.families.divergence.observe import Divergence, TeacherForced
    from pytest_llminfer.families.execution_modes.unrounded import Unrounded
    from pytest_llminfer.families.execution_modes.variants import KVVariants
    from pytest_llminfer.families.kv_equivalence.observe import KVEquivalence
    from pytest_llminfer.families.memory.observe import MemoryProfile
    from pytest_llminfer.families.parallelism.observe import OneGpu, ParallelismTable, SingleAnswers
    from pytest_llminfer.families.throughput.observe import Throughput
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.plugin.judging import Judge


SINGLE_ANSWERS = pytest.StashKey["SingleAnswers"]()


def single_answers(config: pytest.Config) -> SingleAnswers:
    """What the session's cells on one GPU answered so far."""
    from pytest_llminfer.families.parallelism.observe import SingleAnswers

    return config.stash.setdefault(SINGLE_ANSWERS, SingleAnswers())


@pytest.fixture(scope="session")
def llminfer_greedy(llminfer_engine: Engine, pytestconfig: pytest.Config) -> Greedy:
    """The engine's own greedy answers to fixed prompts, in one batch and one by one."""
    from pytest_llminfer.families.tokens.observe import Greedy

    answers = llminfer_engine.once(Greedy.ask)
    single_answers(pytestconfig).keep_greedy(llminfer_engine.spec, answers)
    return answers


@pytest.fixture(scope="session")
def llminfer_unrounded(llminfer_engine: Engine, launch_engine: Callable[..., Engine]) -> Iterator[Unrounded]:
    """What this cell's weights predict without the rounding of its dtype."""
    from pytest_llminfer.families.execution_modes.unrounded import Unrounded

    found = Unrounded(llminfer_engine, launch_engine)
    yield found
    found.close()


@pytest.fixture(scope="module")
def llminfer_kv_variants(
    llminfer_engine: Engine, llminfer_greedy: Greedy, launch_engine: Callable[..., Engine], pytestconfig: pytest.Config
) -> Iterator[KVVariants]:
    """This cell started otherwise, with an engine of its own for each variant, where ``--kv-variants`` asks for that."""
    from pytest_llminfer.families.execution_modes.variants import KVVariants

    variants = KVVariants(
        llminfer_engine, llminfer_greedy, launch_engine, asked_for=settings_of(pytestconfig).execution_modes.kv_variants
    )
    yield variants
    variants.close()


@pytest.fixture
def llminfer_kv_equivalence(llminfer_engine: Engine, llminfer_judge: Judge) -> KVEquivalence:
    """Every way through this cell's KV cache: ``structure()``, ``first_layer(prompts)`` and ``window()``, each judged."""
    from pytest_llminfer.families.kv_equivalence.observe import KVEquivalence

    return KVEquivalence(llminfer_engine, llminfer_judge)


@pytest.fixture(scope="session")
def llminfer_answered(llminfer_engine: Engine, llminfer_gsm8k: QuestionSet, pytestconfig: pytest.Config) -> Answered:
    """The graded answers of this cell, and how long they took: to all of the session's questions where cells are split over
    several GPUs and compared, otherwise to those that the verdict on accuracy needed.
    """
    from pytest_llminfer.plugin.prestart import settle

    settle(pytestconfig)
    found = llminfer_gsm8k.asking(llminfer_engine).some()
    single_answers(pytestconfig).keep_graded(llminfer_engine.spec, found)
    return found


@pytest.fixture
def llminfer_one_gpu(llminfer_engine: Engine, pytestconfig: pytest.Config) -> OneGpu:
    """What the same cell answered on one GPU, earlier in this session."""
    from pytest_llminfer.families.parallelism.observe import OneGpu

    return OneGpu(single_answers(pytestconfig), llminfer_engine.spec)


@pytest.fixture
def llminfer_parallelism_table(llminfer_engine: Engine, llminfer_baseline: Baseline, llminfer_note: Note) -> ParallelismTable:
    """Time and accuracy of this cell, beside those of the others."""
    from pytest_llminfer.families.parallelism.observe import ParallelismTable

    return ParallelismTable(llminfer_engine.spec, llminfer_baseline, llminfer_note)


@pytest.fixture
def llminfer_memory_profile(llminfer_engine: Engine, llminfer_baseline: Baseline, llminfer_note: Note) -> MemoryProfile:
    """Predicted and measured memory of this cell, line by line."""
    from pytest_llminfer.families.memory.observe import MemoryProfile

    return MemoryProfile(llminfer_engine, llminfer_baseline, llminfer_note)


@pytest.fixture(scope="session")
def llminfer_dataset(pytestconfig: pytest.Config) -> Dataset:
    """The questions that ``--dataset`` names."""
    from pytest_llminfer.datasets.load import load

    return load(settings_of(pytestconfig).accuracy.dataset)


@pytest.fixture(scope="session")
def llminfer_teacher_forced(llminfer_engine: Engine, llminfer_dataset: Dataset) -> TeacherForced:
    """What this cell predicts at fixed positions of fixed texts."""
    from pytest_llminfer.families.divergence.observe import TeacherForced

    return llminfer_engine.once(TeacherForced.ask, llminfer_dataset)


@pytest.fixture
def llminfer_divergence(
    llminfer_teacher_forced: TeacherForced, llminfer_baseline: Baseline, pytestconfig: pytest.Config
) -> Divergence:
    """What this cell predicts at fixed positions, and what was recorded there."""
    from pytest_llminfer.families.divergence.observe import Divergence

    return Divergence(llminfer_teacher_forced, llminfer_baseline, settings_of(pytestconfig).divergence.limits)


@pytest.fixture(scope="session")
def llminfer_gsm8k(pytestconfig: pytest.Config, llminfer_dataset: Dataset, llminfer_model: Model) -> QuestionSet:
    """The questions of this session, worded for this cell's model and ready to be asked."""
    from pytest_llminfer.families.accuracy.observe import QuestionSet

    settings = settings_of(pytestconfig).accuracy
    return QuestionSet(
        llminfer_dataset,
        llminfer_model,
        settings.questions,
        source=settings.dataset,
        runs=settings.runs,
        form=settings.form,
        concurrency=settings.concurrency,
        whole=any(cell.parallel for cell in cells_of(pytestconfig)),
    )


@pytest.fixture
def llminfer_accuracy(
    llminfer_engine: Engine,
    llminfer_gsm8k: QuestionSet,
    llminfer_baseline: Baseline,
    llminfer_judge: Judge,
    llminfer_note: Note,
    pytestconfig: pytest.Config,
) -> AccuracyRun:
    """This cell's accuracy beside its own record."""
    return _accuracy(
        pytestconfig, llminfer_engine, llminfer_gsm8k, llminfer_baseline, llminfer_judge, llminfer_note, unquantized=False
    )


@pytest.fixture
def llminfer_unquantized_accuracy(
    llminfer_engine: Engine,
    llminfer_gsm8k: QuestionSet,
    llminfer_baseline: Baseline,
    llminfer_judge: Judge,
    llminfer_note: Note,
    pytestconfig: pytest.Config,
) -> AccuracyRun:
    """A quantized cell's accuracy beside the record of the same engine with unquantized weights."""
    if llminfer_engine.spec.quantization == "none":
        pytest.skip(f"{llminfer_engine.spec} is not quantized; use --quantization=int8, or another one")
    return _accuracy(
        pytestconfig, llminfer_engine, llminfer_gsm8k, llminfer_baseline, llminfer_judge, llminfer_note, unquantized=True
    )


def _accuracy(
    config: pytest.Config,
    engine: Engine,
    questions: QuestionSet,
    baseline: Baseline,
    judge: Judge,
    note: Note,
    *,
    unquantized: bool,
) -> AccuracyRun:
    from pytest_llminfer.families.accuracy.run import AccuracyRun, tests_of

    settings = settings_of(config).accuracy
    cells = cells_of(config)
    tests = tests_of(cells)
    return AccuracyRun(engine, questions, baseline, judge=judge, note=note, settings=settings, tests=tests, unquantized=unquantized)


@pytest.fixture
def llminfer_throughput(llminfer_engine: Engine, benchmark: Any, pytestconfig: pytest.Config) -> Throughput:
    """Measures this cell's speed through pytest-benchmark."""
    from pytest_llminfer.families.throughput.observe import Throughput
    from pytest_llminfer.plugin.prestart import settle

    settle(pytestconfig)
    return Throughput(llminfer_engine, benchmark)
