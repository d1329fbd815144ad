"""The names of entries: which cell a record is of, in the words in which it was asked for. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llminfer.spec import EngineSpec

AUTO = "auto"
_PARTS = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """The name of an entry: ``transformers-nf4-auto-kv_auto``, ``vllm-none-fp16-kv_auto-tp2``.

    Attributes:
        engine: As in ``--engine``.
        quantization: In the words of a cell.
        dtype: As requested, so ``auto`` stays ``auto``: what it resolved to is a condition of the record, and a default that moves
            is a difference, not another entry.
        kv_dtype: As requested, likewise.
        words: Words of serving and parallelism (``tp2``) where the expectation depends on them; otherwise empty.
    """

    engine: str
    quantization: str
    dtype: str
    kv_dtype: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join([self.engine, self.quantization, self.dtype, f"kv_{self.kv_dtype}", *self.words])

    @classmethod
    def parse(cls, name: str) -> Entry:
        """The entry of this name.

        Raises:
            ValueError: it is no name of an entry.
        """
        parts = name.split("-")
        if len(parts) < _PARTS or not parts[_PARTS - 1].startswith("kv_") or not all(parts):
            raise ValueError(f"{name!r} is no name of an entry, such as transformers-none-auto-kv_auto")
        engine, quantization, dtype, kv_dtype, *words = parts
        return cls(engine, quantization, dtype, kv_dtype.removeprefix("kv_"), tuple(words))

    @classmethod
    def of(cls, spec: EngineSpec, *, by: str = "", unquantized: bool = False, per_parallelism: bool = True) -> Entry:
        """The entry of a cell, or of the cell that is its reference.

        Args:
            spec: The cell.
            by: The engine whose record that is, unless it is the cell's own.
            unquantized: Whether it is that of unquantized weights.
            per_parallelism: False leaves serving and parallelism out: ``tp=2`` is then judged by the record of one accelerator, and
                that is the test of parallelism.
        """
        words = (["serve"] * spec.serve + spec.parallelism_words) if per_parallelism else []
        quantization = "none" if unquantized else spec.quantization
        return cls(by or spec.engine, quantization, spec.dtype, spec.kv_dtype, tuple(words))

    def other_words(self, dtype: str, kv_dtype: str) -> list[Entry]:
        """Where else a record of these resolved dtypes may be: ``bf16`` for ``auto`` that came to it, and the other way round."""
        dtypes = dict.fromkeys((self.dtype, dtype, AUTO))
        kv_dtypes = dict.fromkeys((self.kv_dtype, kv_dtype, AUTO))
        others = [replace(self, dtype=one, kv_dtype=other) for one in dtypes for other in kv_dtypes]
        return [other for other in others if other != self]
