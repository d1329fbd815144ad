"""What cells on one GPU answered, kept for those that are split over more; and the line of each in the table of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.accuracy.record import ORDER_SEED
from pytest_llminfer.families.accuracy.recorded import recorded_runs
from pytest_llminfer.families.parallelism.section import PARALLELISM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.baselines.notes import Note
    from pytest_llminfer.families.accuracy.grading import Answer
    from pytest_llminfer.families.accuracy.observe import Answered
    from pytest_llminfer.families.accuracy.recorded import Recorded
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.spec import EngineSpec

T = TypeVar("T")


@dataclass(slots=True)
class SingleAnswers:
    """What the session's cells on one GPU answered.

    Attributes:
        greedy: Cell to its greedy answers.
        graded: Cell to its graded answers by question id.
    """

    greedy: dict[EngineSpec, Greedy] = field(default_factory=dict)
    graded: dict[EngineSpec, dict[str, Answer]] = field(default_factory=dict)

    def keep_greedy(self, spec: EngineSpec, greedy: Greedy) -> None:
        """Keep the greedy answers of a cell on one GPU for the rest of the session."""
        if not spec.parallel:
            self.greedy[spec] = greedy

    def keep_graded(self, spec: EngineSpec, answered: Answered) -> None:
        """Keep the graded answers of a cell on one GPU for the rest of the session."""
        if not spec.parallel:
            self.graded[spec] = answered.answers


class OneGpu:
    """What the same cell answered on one GPU, earlier in this session."""

    def __init__(self, answers: SingleAnswers, spec: EngineSpec) -> None:
        self._answers, self._spec = answers, spec

    @property
    def greedy(self) -> Greedy:
        """Its greedy answers.

        Raises:
            UnsupportedError: that cell was not asked, or holds other weights.
        """
        return self._find(self._answers.greedy)

    @property
    def recorded(self) -> Recorded:
        """Its graded answers, as a record of one run.

        Raises:
            UnsupportedError: that cell was not asked, or holds other weights.
        """
        return recorded_runs([self._find(self._answers.graded)], ORDER_SEED)

    def _find(self, kept: Mapping[EngineSpec, T]) -> T:
        if profile(self._spec.engine).draws_per_rank(self._spec):
            raise UnsupportedError(
                f"{self._spec}: {self._spec.engine} draws other dummy weights on each rank, "
                f"so this is another model than on one GPU",
                "use real weights to compare outputs",
            )
        if self._spec.single not in kept:
            raise UnsupportedError(
                f"the cell {self._spec.single} has not been asked in this session, "
                f"so there is nothing to compare {self._spec} with",
                "use --gpus=N alone, or name both sizes, as in --tp=1,2",
            )
        return kept[self._spec.single]


class ParallelismTable:
    """The table ``engine x {single, dp, tp}`` of this session: each cell adds its line."""

    def __init__(self, spec: EngineSpec, baseline: Baseline, note: Note) -> None:
        self._spec, self._baseline, self._note = spec, baseline, note

    def add(self, answered: Answered) -> None:
        """Note the cell's time and accuracy, to be printed; and stored where baselines are being recorded."""
        line: dict[str, Any] = {
            "questions": len(answered.answers),
            "seconds": round(answered.seconds, 3),
            "tokens_per_second": round(answered.tokens_per_second, 1),
            "accuracy": round(answered.accuracy, 4),
        }
        parallelism = " ".join(self._spec.parallelism_words) or "single"
        self._note(PARALLELISM, {"cell": str(self._spec.single), "parallelism": parallelism, **line})
        self._baseline.keep("parallelism", observed=line, n=len(answered.answers))
