"""What cells on one GPU answered, kept for those that are split over more; and the table of both, side by side."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.parallelism.section import PARALLELISM

if TYPE_CHECKING:
    from pytest_llminfer.families.accuracy.observe import Answered
    from pytest_llminfer.families.accuracy.recorded import Recorded
    from pytest_llminfer.families.tokens.observe import Greedy
    from pytest_llminfer.plugin.recording import Baseline
    from pytest_llminfer.spec import EngineSpec

GREEDY = pytest.StashKey["dict[EngineSpec, Greedy]"]()
ANSWERS = pytest.StashKey["dict[EngineSpec, dict[str, Any]]"]()


def remember_greedy(config: pytest.Config, spec: EngineSpec, greedy: Greedy) -> Greedy:
    """Keep the greedy answers of a cell on one GPU for the rest of the session."""
    if not spec.parallel:
        config.stash.setdefault(GREEDY, {})[spec] = greedy
    return greedy


def remember_answers(config: pytest.Config, spec: EngineSpec, answered: Answered) -> Answered:
    """Keep the graded answers of a cell on one GPU for the rest of the session."""
    if not spec.parallel:
        config.stash.setdefault(ANSWERS, {})[spec] = answered.answers
    return answered


class OneGpu:
    """What the same cell answered on one GPU, earlier in this session."""

    def __init__(self, config: pytest.Config, spec: EngineSpec) -> None:
        self._config, self._spec = config, spec

    @property
    def greedy(self) -> Greedy:
        """Its greedy answers."""
        return self._find(GREEDY)  # type: ignore[no-any-return]

    @property
    def recorded(self) -> Recorded:
        """Its graded answers, as a record of one run."""
        from pytest_llminfer.families.accuracy.record import ORDER_SEED
        from pytest_llminfer.families.accuracy.recorded import recorded_runs

        return recorded_runs([self._find(ANSWERS)], ORDER_SEED)

    def _find(self, key: pytest.StashKey[Any]) -> Any:
        if self._spec.draws_per_rank:
            raise UnsupportedError(
                f"{self._spec}: {self._spec.engine} draws dummy weights on each rank anew, so this is another model than on one "
                "GPU; use real weights to compare outputs"
            )
        kept: dict[EngineSpec, Any] = self._config.stash.get(key, {})
        if self._spec.single not in kept:
            raise UnsupportedError(
                f"the cell {self._spec.single} has not been asked in this session, so there is nothing to compare {self._spec} "
                "with: use --gpus=N alone, or name both sizes, as in --tp=1,2"
            )
        return kept[self._spec.single]


class ParallelismTable:
    """The table ``engine x {single, dp, tp}`` of this session: each cell adds its line."""

    def __init__(self, item: pytest.Item, spec: EngineSpec, baseline: Baseline) -> None:
        self._item, self._spec, self._baseline = item, spec, baseline

    def add(self, answered: Answered) -> None:
        """Note the cell's time and accuracy, to be printed; and stored where baselines are being recorded."""
        line = {
            "questions": len(answered.answers),
            "seconds": round(answered.seconds, 3),
            "tokens_per_second": round(answered.tokens_per_second, 1),
            "accuracy": round(answered.accuracy, 4),
        }
        parallelism = " ".join(self._spec.parallelism_words) or "single"
        shown = {"cell": str(self._spec.single), "parallelism": parallelism, **line}
        self._item.user_properties.append((PARALLELISM, json.dumps(shown)))
        self._baseline.keep("parallelism", observed=line, n=len(answered.answers))
