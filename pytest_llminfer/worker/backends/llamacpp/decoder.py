"""llama.cpp's batch interface: tokens of several sequences into one ``llama_decode``, logits out."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.errors import EngineError, EngineStartError, OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_SLOT, _ABORTED, _ALLOCATION = 1, 2, -2


class Decoder:
    """The context of a live ``Llama`` and one batch whose arrays are written in place.

    A row is a token with its position and sequence; rows are added, then ``run`` computes them all at once.
    """

    def __init__(self, library: Any, llama: Any) -> None:
        if not hasattr(library, "llama_get_memory"):
            raise EngineStartError("this llama-cpp-python is too old for several sequences in one cache; install 0.3.14 or newer")
        self._library = library
        self.context = llama._ctx.ctx  # noqa: SLF001 - there is no public way to a context of Llama
        self.vocabulary = int(llama.n_vocab())
        self.cells = int(library.llama_n_ctx(self.context))
        self.size = int(library.llama_n_batch(self.context))
        self._memory = library.llama_get_memory(self.context)
        self._tokens, self._positions, self._owners = (np.zeros(self.size, np.int32) for _ in range(3))
        self._counts, self._wanted = np.ones(self.size, np.int32), np.zeros(self.size, np.int8)
        self._batch = self._make_batch()
        self.rows = 0

    def _make_batch(self) -> Any:
        integer = ctypes.POINTER(ctypes.c_int32)
        step, first = self._owners.itemsize, self._owners.ctypes.data
        self._pointers = (integer * self.size)(
            *(ctypes.cast(ctypes.c_void_p(first + step * row), integer) for row in range(self.size))
        )
        batch = self._library.llama_batch()
        batch.token = self._tokens.ctypes.data_as(integer)
        batch.pos = self._positions.ctypes.data_as(integer)
        batch.n_seq_id = self._counts.ctypes.data_as(integer)
        batch.seq_id = ctypes.cast(self._pointers, ctypes.POINTER(integer))
        batch.logits = self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        return batch

    @property
    def room(self) -> int:
        """Rows that still fit into the batch."""
        return self.size - self.rows

    def add(self, tokens: Sequence[int], start: int, sequence: int, *, every: bool = False, last: bool = True) -> int:
        """Add rows for ``tokens`` from position ``start`` on; the number of the last one.

        every, last: whether the logits of every row, or of the last one, are wanted.
        """
        rows = slice(self.rows, self.rows + len(tokens))
        self._tokens[rows] = tokens
        self._positions[rows] = np.arange(start, start + len(tokens))
        self._owners[rows] = sequence
        self._wanted[rows] = every
        self.rows = rows.stop
        self._wanted[rows.stop - 1] = every or last
        return self.rows - 1

    def run(self) -> np.ndarray:
        """Compute the rows that were added; float32 (wanted rows, vocabulary), in their order, valid until the next call.

        Raises:
            OutOfMemoryError: the KV cache has no room for the batch.
            EngineError: llama.cpp failed for another reason.
        """
        wanted = int(self._wanted[: self.rows].sum())
        self._batch.n_tokens, self.rows = self.rows, 0
        status = self._library.llama_decode(self.context, self._batch)
        if status in {_NO_SLOT, _ALLOCATION}:
            raise OutOfMemoryError(f"the KV cache of {self.cells} tokens has no room for the batch; raise n_ctx or lower n_seq_max")
        if status != 0:
            raise EngineError(f"llama_decode failed with status {status}; the worker's log says why")
        if not wanted:
            return np.empty((0, self.vocabulary), np.float32)
        logits = self._library.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, shape=(wanted, self.vocabulary))

    def forget(self, sequence: int) -> None:
        """Free the cells of one sequence."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def clear(self) -> None:
        """Free all cells, and drop rows that were added and not run."""
        self.rows = 0
        self._library.llama_memory_clear(self._memory, False)  # noqa: FBT003 - a C function without names

    def feed(self, tokens: Sequence[int], start: int = 0) -> np.ndarray:
        """The logits (vocabulary,) after ``tokens`` of sequence 0, in as many calls as the batch needs."""
        for begin in range(0, len(tokens), self.size):
            piece = tokens[begin : begin + self.size]
            self.add(piece, start + begin, 0, last=begin + len(piece) == len(tokens))
            logits = self.run()
        found: np.ndarray = logits[0]
        return found
