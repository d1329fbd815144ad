"""What a session asks of the accuracy family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AccuracySettings:
    """How questions are asked and judged.

    dataset: the name or path of the questions; other families take their texts from it too.
    questions: how many are asked, ``sys.maxsize`` for all; None: all on a GPU, fewer on a processor.
    form: how they are worded, a name in ``datasets.prompts.FORMS``.
    concurrency: questions in flight at once; None: the engine is given a whole look.
    runs: how often each question is asked for a record.
    margin: the drop, as a share, that a PASS rules out; None: the family's own.
    full: whether all questions are asked though the verdict is reached earlier.
    run_history: whether this run's evidence is added to the run history.
    """

    dataset: str
    questions: int | None = None
    form: str = "zero-shot"
    concurrency: int | None = None
    runs: int = 4
    margin: float | None = None
    full: bool = False
    run_history: bool = False
