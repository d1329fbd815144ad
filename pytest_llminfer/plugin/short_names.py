"""The fixtures by their short names: each is the one with the prefix ``llminfer_``.

The fixtures of this plugin ask for each other by the names with the prefix. Where a project has a fixture ``model`` or ``engine``
of its own, its tests get that, and ours keep working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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
    from pytest_llminfer.families.parallelism.observe import OneGpu, ParallelismTable
    from pytest_llminfer.families.throughput.observe import Throughput
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.hardware import Hardware
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.plugin.judging import Judge
    from pytest_llminfer.spec import EngineSpec


@pytest.fixture(scope="session")
def engine_spec(llminfer_engine_spec: EngineSpec) -> EngineSpec:
    """The cell under test."""
    return llminfer_engine_spec


@pytest.fixture
def checkpoint(llminfer_checkpoint: str) -> str:
    """The path of a checkpoint that ``--checkpoint`` names; no engine is started for it."""
    return llminfer_checkpoint


@pytest.fixture(scope="session")
def model(llminfer_model: Model) -> Model:
    """What is served: files, configuration, tokenizer, chat template, shape arithmetic."""
    return llminfer_model


@pytest.fixture(scope="session")
def engine(llminfer_engine: Engine) -> Engine:
    """The engine of this cell, loaded once for all its tests."""
    return llminfer_engine


@pytest.fixture(scope="session")
def greedy(llminfer_greedy: Greedy) -> Greedy:
    """The engine's own greedy answers to fixed prompts, in one batch and one by one."""
    return llminfer_greedy


@pytest.fixture(scope="module")
def kv_variants(llminfer_kv_variants: KVVariants) -> KVVariants:
    """This cell started otherwise, with an engine of its own for each variant, where ``--kv-variants`` asks for that."""
    return llminfer_kv_variants


@pytest.fixture
def kv_equivalence(llminfer_kv_equivalence: KVEquivalence) -> KVEquivalence:
    """Every way through this cell's KV cache: ``structure()``, ``first_layer(prompts)`` and ``window()``, each judged."""
    return llminfer_kv_equivalence


@pytest.fixture(scope="session")
def answered(llminfer_answered: Answered) -> Answered:
    """The graded answers of this cell, and how long they took: to all of the session's questions where cells are split over
    several GPUs and compared, otherwise to those that the verdict on accuracy needed.
    """
    return llminfer_answered


@pytest.fixture
def one_gpu(llminfer_one_gpu: OneGpu) -> OneGpu:
    """What the same cell answered on one GPU, earlier in this session."""
    return llminfer_one_gpu


@pytest.fixture(scope="session")
def hardware(llminfer_hardware: Hardware) -> Hardware:
    """This machine's accelerators, or its processor."""
    return llminfer_hardware


@pytest.fixture
def judge(llminfer_judge: Judge) -> Judge:
    """Turns a verdict into this test's outcome."""
    return llminfer_judge


@pytest.fixture
def note(llminfer_note: Note) -> Note:
    """Takes what this test found to the report of the session."""
    return llminfer_note


@pytest.fixture
def baseline(llminfer_baseline: Baseline) -> Baseline:
    """The recorded expectations of this test's cell."""
    return llminfer_baseline


@pytest.fixture
def parallelism_table(llminfer_parallelism_table: ParallelismTable) -> ParallelismTable:
    """Time and accuracy of this cell, beside those of the others."""
    return llminfer_parallelism_table


@pytest.fixture
def memory_profile(llminfer_memory_profile: MemoryProfile) -> MemoryProfile:
    """Predicted and measured memory of this cell, line by line."""
    return llminfer_memory_profile


@pytest.fixture(scope="session")
def dataset(llminfer_dataset: Dataset) -> Dataset:
    """The questions that ``--dataset`` names."""
    return llminfer_dataset


@pytest.fixture(scope="session")
def teacher_forced(llminfer_teacher_forced: TeacherForced) -> TeacherForced:
    """What this cell predicts at fixed positions of fixed texts."""
    return llminfer_teacher_forced


@pytest.fixture
def divergence(llminfer_divergence: Divergence) -> Divergence:
    """What this cell predicts at fixed positions, and what was recorded there."""
    return llminfer_divergence


@pytest.fixture(scope="session")
def gsm8k(llminfer_gsm8k: QuestionSet) -> QuestionSet:
    """The questions of this session, worded for this cell's model and ready to be asked."""
    return llminfer_gsm8k


@pytest.fixture
def accuracy(llminfer_accuracy: AccuracyRun) -> AccuracyRun:
    """This cell's accuracy beside its own record."""
    return llminfer_accuracy


@pytest.fixture
def unquantized_accuracy(llminfer_unquantized_accuracy: AccuracyRun) -> AccuracyRun:
    """A quantized cell's accuracy beside the record of the same engine with unquantized weights."""
    return llminfer_unquantized_accuracy


@pytest.fixture
def throughput(llminfer_throughput: Throughput) -> Throughput:
    """Measures this cell's speed through pytest-benchmark."""
    return llminfer_throughput
