"""What the text of an option means, or in one line why it means nothing."""

from __future__ import annotations

import pytest

from pytest_llminfer.plugin.option_values import json_object


def test_a_json_object_is_read() -> None:
    assert json_object('{"seed": 3, "nested": {"seed": 4}}') == {"seed": 3, "nested": {"seed": 4}}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ('{"seed": 3, "seed": 4}', "^'seed' stands twice: say it once$"),
        ('{"a": {"b": 1, "b": 1}}', "^'b' stands twice: say it once$"),
        ('{"seed": 3', "^not JSON: "),
        ("[3]", "is not a JSON object such as"),
    ],
)
def test_what_is_none_is_said_in_one_line(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        json_object(word)
    assert len(str(caught.value).splitlines()) == 1
