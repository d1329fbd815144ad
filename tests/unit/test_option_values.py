"""What the text of an option means, or in one line why it means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llminfer.plugin.option_values import folder, json_object


def test_a_folder_of_baselines_that_is_named_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "baselines").mkdir()
    (tmp_path / "file").touch()
    assert folder("baselines", root=tmp_path, must_exist=True) == tmp_path / "baselines"
    assert folder("new", root=tmp_path, must_exist=False) == tmp_path / "new"
    for word, message in (
        ("baselinez", r"^there is no folder 'baselinez': record into it with .*=new, .* Did you mean 'baselines'\?$"),
        ("../other/x", r"^there is no folder '../other/x': record into it with .*, or name one that is there\.$"),
        ("file", "^'file' is a file, and no folder$"),
    ):
        with pytest.raises(ValueError, match=message):
            folder(word, root=tmp_path, must_exist=True)


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
