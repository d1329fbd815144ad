"""The words put around a question. Changing one makes every recorded accuracy incomparable, by its hash."""

from __future__ import annotations

ZERO_SHOT = "{question}\n\nSolve it step by step. End with a line of the form #### <number>."
"""The user message of a zero-shot chat: one question, and the form that the answer must take."""

FEW_SHOT_EXAMPLE = "Question: {question}\nAnswer: {answer}"
"""One solved example of the published completion form (GSM8K, 5-shot); examples are joined by a blank line."""

FEW_SHOT_QUESTION = "Question: {question}\nAnswer:"
"""The question that ends a few-shot prompt."""
