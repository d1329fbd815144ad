"""Engine arguments of transformers: what is refused before anything is imported."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.worker.backends.transformers.arguments import Arguments


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trust_remote_code": True}, "trust_remote_code cannot be used: this engine runs no code that comes with a checkpoint"),
        ({"max_batch_token": 5}, "unknown engine argument 'max_batch_token' .* Did you mean 'max_batch_tokens'"),
        ({"max_batch_tokens": 0}, "max_batch_tokens must be a whole number of at least 1, not 0"),
    ],
)
@pytest.mark.fault(
    "inputs", "engine arguments that do not exist, or trust in code of a checkpoint", "refused; code of a checkpoint is never run"
)
def test_what_cannot_be_used_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        Arguments.read(given)


def test_the_rest_goes_to_from_pretrained() -> None:
    arguments = Arguments.read({"trust_remote_code": False, "max_batch_tokens": 300, "revision": "main"})
    assert arguments.max_batch_tokens == 300
    assert arguments.from_pretrained == {"attn_implementation": "sdpa", "trust_remote_code": False, "revision": "main"}
