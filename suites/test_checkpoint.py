"""Checkpoints on disk that ``--checkpoint`` names, judged by the headers of their files: nothing is loaded, no engine starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.families.layout.checkpoint import check_checkpoint
from pytest_llminfer.models.stored import read_stored

if TYPE_CHECKING:
    from pytest_llminfer.plugin.judging import Judge


def test_checkpoint_is_stored_as_it_declares(checkpoint: str, judge: Judge) -> None:
    """The linears of every layer have the declared format to the byte, all else keeps the model's dtype; the index is complete."""
    for verdict in check_checkpoint(read_stored(checkpoint)):
        judge(verdict)
