"""What a session asks of the accuracy family."""

from __future__ import annotations

from dataclasses import dataclass

ANSWERS_FILE = "answers.jsonl"
"""In the folder of the report: what the session's cells answered, a line a question."""


@dataclass(frozen=True, slots=True)
class AccuracySettings:
    """How questions are asked and judged.

    Attributes:
        dataset: Name or path of the questions; other families take their texts from it too.
        questions: How many are asked, ``sys.maxsize`` for all; None for all on a GPU and fewer on a processor.
        form: How they are worded, a name in ``datasets.prompts.FORMS``.
        concurrency: Questions in flight at once; None for a whole look at a time.
        runs: How often each question is asked for a record.
        margin: The drop, as a share, that a PASS rules out; None for the family's own.
        full: Whether all questions are asked though the verdict is reached earlier.
        run_history: Whether this run's evidence is added to the run history.
        order: Seed of the order in which questions are asked; None draws a new order each session.
        answers_file: Where the session's answers are written, as it is shown; empty where they are not.
    """

    dataset: str
    questions: int | None = None
    form: str = "zero-shot"
    concurrency: int | None = None
    runs: int = 4
    margin: float | None = None
    full: bool = False
    run_history: bool = False
    order: int | None = None
    answers_file: str = ""
