"""Keys and values of the tokens seen so far: real arrays, one pair a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pytest_llminfer.worker.backends.simulated.shape import Shape


class KVCache:
    """Room for ``capacity`` tokens in each of ``rows`` rows; row r holds ``lengths[r]`` of them.

    keys, values: (rows, kv_heads, capacity, head_dim) per layer.
    """

    def __init__(self, shape: Shape, rows: int, capacity: int, dtype: np.dtype[Any]) -> None:
        dimensions = (rows, shape.num_key_value_heads, capacity, shape.head_dim)
        self.keys = [np.zeros(dimensions, dtype) for _ in range(shape.num_hidden_layers)]
        self.values = [np.zeros(dimensions, dtype) for _ in range(shape.num_hidden_layers)]
        self.lengths = np.zeros(rows, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, room that is not yet used included."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    def append(self, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store (rows, kv_heads, tokens, head_dim) behind each row's tokens; all keys and values up to the longest row."""
        tokens = keys.shape[2]
        end = int(self.lengths.max()) + tokens
        if (self.lengths == self.lengths[0]).all():
            self.keys[layer][:, :, end - tokens : end] = keys
            self.values[layer][:, :, end - tokens : end] = values
        else:
            rows = np.arange(len(self.lengths))[:, None]
            places = self.lengths[:, None] + np.arange(tokens)
            # Advanced indices on both sides of a slice move to the front: (rows, tokens, kv_heads, head_dim).
            self.keys[layer][rows, :, places] = keys.transpose(0, 2, 1, 3)
            self.values[layer][rows, :, places] = values.transpose(0, 2, 1, 3)
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def keep_rows(self, rows: np.ndarray) -> None:
        """Drop the rows that have ended."""
        self.keys = [array[rows] for array in self.keys]
        self.values = [array[rows] for array in self.values]
        self.lengths = self.lengths[rows]

    def layer_report(self, layer: int) -> dict[str, Any]:
        """The fields of ``CacheLayer``, for the tokens in use."""
        keys, values = self.in_use(layer)
        return {
            "key_shape": list(keys.shape),
            "value_shape": list(values.shape),
            "dtype": str(keys.dtype),
            "stored_bytes": keys.nbytes + values.nbytes,
        }

    def in_use(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of the tokens seen so far."""
        end = int(self.lengths.max())
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
