"""Messages survive the pipe: plain values, arrays of every shape and dtype, and nothing else gets through."""

from __future__ import annotations

import io
import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.worker.protocol.cache_paths import CachePath
from pytest_llminfer.worker.protocol.frames import MAGIC, ProtocolError, read_message, write_message
from tests.support.present import present

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text()
arrays = numpy_st.arrays(
    dtype=st.sampled_from(["<f4", "<f8", "<f2", "<i4", "<i8", "|u1", "|b1"]),
    shape=numpy_st.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
values = st.recursive(scalars | arrays, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def equal(sent: Any, received: Any) -> bool:
    if isinstance(sent, np.ndarray):
        return sent.dtype == received.dtype and sent.shape == received.shape and sent.tobytes() == received.tobytes()
    if isinstance(sent, dict):
        return sent.keys() == received.keys() and all(equal(sent[key], received[key]) for key in sent)
    if isinstance(sent, list):
        return len(sent) == len(received) and all(map(equal, sent, received))
    return type(sent) is type(received) and sent == received


@given(st.lists(st.dictionaries(st.text(min_size=1).filter(lambda key: key != "__array__"), values, max_size=4), max_size=3))
def test_what_is_written_is_read_in_order(messages: list[dict[str, Any]]) -> None:
    stream = io.BytesIO()
    for message in messages:
        write_message(stream, message)
    stream.seek(0)
    for message in messages:
        assert equal(message, read_message(stream))
    assert read_message(stream) is None


def test_arrays_that_are_not_contiguous_arrive_as_they_look() -> None:
    array = np.arange(24).reshape(4, 6)[::2, ::3].T
    stream = io.BytesIO()
    write_message(stream, {"a": array})
    stream.seek(0)
    assert np.array_equal(present(read_message(stream))["a"], array)


def test_received_arrays_can_be_written_to() -> None:
    stream = io.BytesIO()
    write_message(stream, {"a": np.zeros(3)})
    stream.seek(0)
    array = present(read_message(stream))["a"]
    array[0] = 1
    assert array.tolist() == [1, 0, 0]


def test_numpy_scalars_become_plain_numbers() -> None:
    stream = io.BytesIO()
    write_message(stream, {"a": np.float32(0.5), "b": np.int64(3)})
    stream.seek(0)
    assert read_message(stream) == {"a": 0.5, "b": 3}


def test_a_message_is_written_while_another_thread_imports_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    monkeypatch.setitem(sys.modules, "numpy", types.ModuleType("numpy"))  # as far as an import is when it begins
    write_message(stream, {"id": 1, "words": ["a", 2.5]})
    stream.seek(0)
    assert read_message(stream) == {"id": 1, "words": ["a", 2.5]}


def test_arrays_of_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        write_message(io.BytesIO(), {"a": np.array([object()])})


@pytest.mark.parametrize(
    ("junk", "says"),
    [
        (b"Loading model...\n", "expected a message, got b'Load"),
        (MAGIC, "expected a message, got"),
        (MAGIC + b"\xff\x00\x00\x00{}", "cut short: 2 of 255 bytes"),
    ],
)
def test_what_is_no_message_is_refused(junk: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read_message(io.BytesIO(junk))


def test_a_cache_path_crosses_whole_and_one_with_an_unknown_part_is_refused() -> None:
    cache_path = CachePath(chunks=(3, 4), cache="quantized", cache_bits=2, batch=3, prefix=2)
    assert CachePath.read(cache_path.to_dict()) == cache_path
    with pytest.raises(BadInputError, match="unknown parts of a cache path: chnks, prefx"):
        CachePath.read({"chnks": [3], "prefx": 1})
