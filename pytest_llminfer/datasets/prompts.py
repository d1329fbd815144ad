"""The words put around a question, and where an answer to them ends. Changing one makes every recorded accuracy incomparable.

Two forms: zero-shot, a chat that asks for ``#### <number>``; and the published 5-shot form of GSM8K, in which the model continues
a text of solved examples, worded as in lm-evaluation-harness (tasks/gsm8k/gsm8k.yaml, version 3). Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.datasets.fingerprint import items_sha256
from pytest_llminfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.datasets.gsm8k import Problem

ZERO_SHOT = "{question}\n\nSolve it step by step. End with a line of the form #### <number>."
"""The user message of a zero-shot chat: one question, and the form that the answer must take."""

FEW_SHOT_EXAMPLE = "Question: {question}\nAnswer: {answer}"
"""One solved example of the published completion form (GSM8K, 5-shot); examples are joined by a blank line."""

FEW_SHOT_QUESTION = "Question: {question}\nAnswer:"
"""The question that ends a few-shot prompt."""


@dataclass(frozen=True, slots=True)
class PromptForm:
    """One way of putting a question to a model.

    Attributes:
        name: What ``--gsm8k-form`` calls it.
        version: Raised when the wording or the stops change; baselines record ``str(form)``, such as ``5-shot@1``.
        chat: Whether the text is a user's message for the chat template. Otherwise the model continues the text itself, which is
            encoded with what the tokenizer puts at the start of a text.
        question: Template of the question, with ``{question}``.
        example: Template of one solved problem, with ``{question}`` and ``{answer}``; empty where the form has none.
        shots: How many solved problems precede the question.
        stop: Strings before which an answer ends, whichever comes first; empty for none.
    """

    name: str
    version: int
    chat: bool
    question: str
    example: str = ""
    shots: int = 0
    stop: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    def word(self, question: str, examples: Sequence[Problem] = ()) -> str:
        """The text that puts ``question`` to a model, after the first ``shots`` of ``examples``.

        Raises:
            DatasetError: there are fewer examples than that.
        """
        solved = [self.example.format(question=shot.question, answer=shot.answer) for shot in self._shots(examples)]
        return "\n\n".join([*solved, self.question.format(question=question)])

    def read(self, text: str) -> tuple[str, bool]:
        """The answer in a generated ``text``: what stands before the first stop string, and whether there was one.

        An engine that knows no stop strings generates past them. Such an answer ended by itself even where the engine
        ran into its token limit afterwards, so that it is not to be counted as cut off.
        """
        ends = [place for place in map(text.find, self.stop) if place >= 0]
        return (text[: min(ends)], True) if ends else (text, False)

    def conditions(self, examples: Sequence[Problem] = ()) -> dict[str, Any]:
        """What must be equal for two runs to be compared, beside the hash of the prompts.

        Raises:
            DatasetError: there are fewer examples than the form needs.
        """
        return {"prompt_form": str(self), "examples_sha256": items_sha256(self._shots(examples)), "stop": list(self.stop)}

    def _shots(self, examples: Sequence[Problem]) -> Sequence[Problem]:
        if len(examples) < self.shots:
            raise DatasetError(f"{self.name} needs examples: {self.shots} solved problems, and there are {len(examples)}")
        return examples[: self.shots]


FORMS = {
    form.name: form
    for form in (
        PromptForm("zero-shot", version=1, chat=True, question=ZERO_SHOT),
        PromptForm(
            "5-shot",
            version=2,  # 1 sent no stop strings, and counted the tokens after one
            chat=False,
            question=FEW_SHOT_QUESTION,
            example=FEW_SHOT_EXAMPLE,
            shots=5,
            stop=("Question:", "</s>", "<|im_end|>"),
        ),
    )
}
"""By name; the first is the default."""
