"""A model that is fed over one cache, column by column, with its pads, crops and beams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.worker.backends.transformers import path_cache

if TYPE_CHECKING:
    from collections.abc import Sequence


class Walk:
    """A cache that is being filled, row by row and column by column. A column is a token of each row, or a pad of some.

    Masks and positions are given to the model only once a pad is there; before, it knows both from its cache.
    """

    def __init__(self, model: Any, cache: Any) -> None:
        self._model, self.cache, self.config = model, cache, model.config
        self._ids = torch.empty(0, dtype=torch.long, device=model.device)
        self._real = torch.empty(0, dtype=torch.long, device=model.device)
        self._remembers = False
        self.columns: list[int] = []

    def feed(self, rows: Sequence[Sequence[int]], columns: Sequence[int], real: Sequence[Sequence[int]] | None = None) -> Any:
        """The logits (rows, n, vocabulary) of n columns. columns: the position of the read sequence in each, -1 of a pad."""
        ids = torch.tensor(rows, device=self._model.device)
        own = torch.ones_like(ids) if real is None else torch.tensor(real, device=self._model.device)
        new = self._ids.shape[0] == 0
        self._ids = ids if new else torch.cat([self._ids, ids], dim=1)
        self._real = own if new else torch.cat([self._real, own], dim=1)
        self.columns += columns
        given = self._ids if self.cache is None else ids
        padded = {}
        if not bool(self._real.all()):
            positions = (self._real.cumsum(dim=1) - 1).clamp(min=0)[:, -given.shape[1] :]
            padded = {"attention_mask": self._real, "position_ids": positions}
        kept = {"past_key_values": self.cache, "use_cache": True} if self.cache is not None else {"use_cache": False}
        logits = self._model(input_ids=given, **kept, **padded).logits[:, -ids.shape[1] :]
        if self._remembers:
            path_cache.crop(self.cache, 0)
        return logits

    def feed_and_crop(self, rows: Sequence[Sequence[int]], count: int, *, columns: Sequence[int], **real: Any) -> Any:
        """``feed``, of whose columns the last ``count`` are taken away again."""
        if self.cache is not None:
            path_cache.check_croppable(self.cache)
            path_cache.remember(self.cache)
        self._remembers = False
        logits = self.feed(rows, columns, **real)
        if self.cache is not None:
            path_cache.crop(self.cache, count)
            # Layers with a window keep what they once remembered until the next crop.
            self._remembers = True
        self._ids, self._real = self._ids[:, :-count], self._real[:, :-count]
        del self.columns[-count:]
        return logits

    def branch(self, beams: int) -> None:
        """Copy every row ``beams`` times, one beside another."""
        self.cache.batch_repeat_interleave(beams)
        self._ids, self._real = (tensor.repeat_interleave(beams, dim=0) for tensor in (self._ids, self._real))

    def reorder(self, beams: int) -> None:
        """Every row takes the place of the one before it in its group of ``beams``, the first that of the last."""
        rows = torch.arange(self._ids.shape[0], device=self._ids.device).view(-1, beams).roll(-1, dims=1).flatten()
        if self.cache is not None:
            self.cache.reorder_cache(rows)
        self._ids, self._real = self._ids[rows], self._real[rows]
