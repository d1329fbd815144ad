"""One run of a dataset's questions through a cell, judged while the answers come in and stopped when the verdict is reached."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llminfer.baselines import run_history
from pytest_llminfer.datasets.gsm8k import EXTRACTORS, knows
from pytest_llminfer.errors import TransportError
from pytest_llminfer.families.accuracy.answers import check_format, check_length, check_truncation
from pytest_llminfer.families.accuracy.check import MARGIN, AccuracyTest, with_answers
from pytest_llminfer.families.accuracy.comparable import check_questions, check_transport
from pytest_llminfer.families.accuracy.drift import check_drift
from pytest_llminfer.families.accuracy.margin import plan_margin, supported_margin
from pytest_llminfer.families.accuracy.record import unpack
from pytest_llminfer.families.accuracy.sampler import check_sampler
from pytest_llminfer.families.accuracy.section import ANSWERS, EVIDENCE
from pytest_llminfer.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.baselines.notes import Note
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.accuracy.grading import Answer, Gate
    from pytest_llminfer.families.accuracy.observe import QuestionSet
    from pytest_llminfer.families.accuracy.recorded import Recorded
    from pytest_llminfer.families.accuracy.settings import AccuracySettings
    from pytest_llminfer.spec import EngineSpec

T = TypeVar("T")

FAMILY = "gsm8k"
MARGIN_OF_FOUR_BITS = 0.06
"""Four bits cost about 2.5 points, which a margin of 6 passes in 94 % of runs over 1,000 questions (docs/methods.md#power)."""
FOUR_BITS = ("awq", "fp4", "gptq", "nf4", "q4_0", "q4_k_m", "q4_k_s", "w4a16")
"""Formats of about four bits a weight; the others keep eight or more."""


def tests_of(cells: Iterable[EngineSpec]) -> int:
    """How many tests of accuracy the session's cells make together, which share its level.

    A quantized cell is tested twice: against its own record, and against that of unquantized weights.
    """
    return sum(1 + (cell.quantization != "none") for cell in cells)


class AccuracyRun:
    """The verdicts on one cell's accuracy. Questions are asked when one of them is asked for.

    tests: of accuracy that the session's cells make together (:func:`tests_of`). unquantized: whether the record is that of the
    same engine with weights that are not quantized, and a drop within the margin is what quantization costs.
    """

    def __init__(
        self,
        engine: Engine,
        questions: QuestionSet,
        baseline: Baseline,
        *,
        judge: Callable[[Verdict], None],
        note: Note,
        settings: AccuracySettings,
        tests: int,
        unquantized: bool = False,
    ) -> None:
        self._engine, self._questions, self._baseline = engine, questions, baseline
        self._judge, self._note, self._settings = judge, note, settings
        self._tests, self._unquantized = tests, unquantized

    @cached_property
    def expected(self) -> Mapping[str, Any]:
        """What is recorded; ends the test as a skip where nothing is, or where this run recorded it."""
        expected: Mapping[str, Any] = self._baseline.expected(
            FAMILY,
            observe=self._observe,
            conditions=self._questions.conditions(self._engine, self.extractors),
            n=lambda record: record["questions"],
            unquantized=self._unquantized,
            read=self._readable,
        )
        return expected

    def _readable(self, expected: Mapping[str, Any]) -> Mapping[str, Any]:
        unpack(expected, self._questions.ids(self._engine, int(expected["questions"])))
        return expected

    @cached_property
    def extractors(self) -> Mapping[str, str]:
        """By which this run's answers are read: those that the record was made with; the newest where one is made."""
        recorded = self._baseline.conditions(FAMILY, unquantized=self._unquantized).get("extractors")
        return recorded if isinstance(recorded, dict) and knows(recorded) else EXTRACTORS

    @cached_property
    def recorded(self) -> Recorded:
        """The recorded runs, to be asked in an order drawn for this session."""
        found = unpack(self.expected, self._questions.ids(self._engine, self.expected["questions"]))
        return found.shuffled(self._order_seed)

    @property
    def _order_seed(self) -> int:
        return self._questions.order_seed if self._settings.order is None else self._settings.order

    @property
    def _wanted_margin(self) -> float:
        if self._settings.margin is not None:
            return self._settings.margin
        four_bits = self._unquantized and self._engine.spec.quantization in FOUR_BITS
        return MARGIN_OF_FOUR_BITS if four_bits else MARGIN

    def _margin(self, recorded: Recorded, count: int) -> tuple[float, str]:
        """The drop, as a share, that a PASS rules out; and where it comes from, if it is not the usual one."""
        wanted = self._wanted_margin
        if self._settings.margin is not None:
            return wanted, ""
        margin = supported_margin(recorded, wanted, questions=count)
        return margin, f"; the margin is what {count:,} questions of the record support" * (margin > wanted)

    @cached_property
    def _judged(self) -> tuple[AccuracyTest, Verdict, dict[str, Answer]]:
        recorded, count = self.recorded, self._questions.count(self._engine)
        if self._questions.limited and count > len(recorded.order):
            self._judge(check_questions(asked=count, recorded=len(recorded.order)))
        count = min(count, len(recorded.order))
        if self._settings.full and not self._questions.limited:
            count = len(recorded.order)
        margin, origin = self._margin(recorded, count)
        test = AccuracyTest(
            recorded,
            gate=recorded.gate,
            cells=self._tests,
            margin=margin,
            tolerated=margin if self._unquantized else 0.0,
            questions=count,
        )
        asking, verdict = self._questions.asking(self._engine), None
        for count in test.chunks:
            ask = partial(asking.ask, test.order[:count], following=test.order, extractors=self.extractors)
            answers = self._answered(ask, count).answers
            seen = test.look(answers)
            verdict = verdict or seen
            if verdict and not self._settings.full:
                break
        assert verdict is not None, "the last look has a verdict"  # noqa: S101 - tells the type checker
        self._keep_answers()
        last = seen if self._settings.full and seen else verdict
        threshold = f"{last.threshold}{origin}; asked in the order of --gsm8k-order={self._order_seed}"
        return test, with_answers(replace(last, threshold=threshold), self._settings.answers_file), answers

    def _keep_answers(self) -> None:
        """Note what was answered, for whoever reads the answers; nothing where no file was asked for."""
        if self._settings.answers_file and (rows := self._questions.asking(self._engine).unshown(self.extractors)):
            self._note(ANSWERS, {"cell": str(self._engine.spec), "rows": rows})

    def _answered(self, ask: Callable[[], T], asked: int) -> T:
        """What ``ask`` returns; a request without an answer ends the test as INVALID."""
        try:
            return ask()
        except TransportError as error:
            failed = error
        self._judge(check_transport(error=str(failed), asked=asked))
        raise failed

    @property
    def answers(self) -> dict[str, Answer]:
        """The answers that the verdict stands on, by question id."""
        return self._judged[2]

    def conclude(self) -> Verdict:
        """The verdict on accuracy; its evidence is noted for the session's correction over cells, and for the run history."""
        self._note_evidence()
        return self._judged[1]

    def _note_evidence(self) -> None:
        test, verdict, _ = self._judged
        self._note(EVIDENCE, self._evidence(test, verdict))

    def objections(self) -> list[Verdict]:
        """What speaks against comparing accuracy at all: verdicts that are no PASS."""
        return [verdict for verdict in self._validity() if verdict.outcome is not Outcome.PASS]

    def _validity(self) -> tuple[Verdict, ...]:
        answers, recorded = self.answers, self.recorded
        checks = (check_truncation, check_format) if self._unquantized else (check_truncation, check_format, check_length)
        verdicts = tuple(with_answers(check(answers=answers, recorded=recorded), self._settings.answers_file) for check in checks)
        return (*self._sampler(answers), *verdicts)

    def _sampler(self, answers: Mapping[str, Answer]) -> tuple[Verdict, ...]:
        watched = self._questions.watches_sampler(self._engine)
        return (check_sampler(answers=answers, dtype=self._engine.info.dtype),) if watched else ()

    def drift(self) -> Verdict:
        """What all past runs in the run history and this one show together; with ``--run-history`` this one is added to it."""
        if self._settings.run_history:
            self._note_evidence()
        path = self._baseline.run_history_path
        past_runs = [past_run.outcomes for past_run in run_history.read(path, entry=self._entry, record=self._fingerprint)]
        return check_drift(recorded=self.recorded, past_runs=[*past_runs, self._outcomes()])

    @property
    def gate(self) -> Gate:
        """The reading that counts."""
        return self.recorded.gate

    def _observe(self, engine: Engine, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        record = self._answered(partial(self._questions.record, engine, previous), self._questions.count(engine))
        for verdict in self._sampler(self._questions.asking(engine).some().answers):
            if verdict.outcome is not Outcome.PASS:
                self._judge(verdict)
        self._keep_answers()
        made = unpack(record, self._questions.ids(engine, record["questions"]))
        plan_margin(made, self._margin(made, record["questions"])[0], gate=made.gate)
        return record

    @property
    def _entry(self) -> str:
        return self._baseline.entry()

    @property
    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(dict(self.expected), sort_keys=True).encode()).hexdigest()[:16]

    def _outcomes(self) -> str:
        answers = self.answers
        words = {True: run_history.RIGHT, False: run_history.WRONG}
        return "".join(
            words[getattr(answers[name], self.gate)] if name in answers else run_history.NOT_ASKED
            for name in self.recorded.right(self.gate)
        )

    def _evidence(self, test: AccuracyTest, verdict: Verdict) -> dict[str, Any]:
        return {
            "cell": str(self._engine.spec),
            "against": "unquantized" if self._unquantized else "record",
            "outcome": verdict.outcome.value,
            "p_value": test.p_value,
            "log_e": test.log_e,
            "asked": len(self.answers),
            "of": len(test.order),
            "past_run": None
            if self._unquantized or not self._settings.run_history
            else {
                "path": str(self._baseline.run_history_path),
                "entry": self._entry,
                "record": self._fingerprint,
                "outcomes": self._outcomes(),
                "p_value": test.p_value,
                "log_e": test.log_e,
                "versions": dict(self._engine.info.versions),
            },
        }
