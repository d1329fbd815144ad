"""Every field of a dataclass, NamedTuple or TypedDict of the package has an entry of its own under ``Attributes:`` of its class."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from import_graph import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = re.compile(r" {4}(\w+): (.+)")
FILLER = {"a", "an", "of", "the", "its"}


def complaints(source: str) -> list[str]:
    """What is wrong with the documented fields of the classes in ``source``: ``Class.field`` and the reason."""
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and holds_data(node)]
    return [f"{node.name}.{complaint}" for node in classes for complaint in of_class(node)]


def holds_data(node: ast.ClassDef) -> bool:
    named = [ast.unparse(each.func if isinstance(each, ast.Call) else each) for each in node.decorator_list]
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    return "dataclass" in {name.rpartition(".")[2] for name in named} or bool(bases & {"NamedTuple", "TypedDict"})


def of_class(node: ast.ClassDef) -> Iterator[str]:
    fields = [
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and "ClassVar" not in ast.unparse(each.annotation)
    ]
    entries = documented(ast.get_docstring(node) or "")
    for name in fields:
        if name not in entries:
            yield f"{name} is not documented"
        elif not words(entries[name]) - words(name) - FILLER:
            yield f"{name} is documented by its name alone"
    yield from (f"{name} is documented and no field of the class" for name in entries if name not in fields)


def documented(docstring: str) -> dict[str, str]:
    """The entries of the section ``Attributes:``, each with its first line."""
    section = docstring.partition("\nAttributes:\n")[2].partition("\n\n")[0]
    return {found[1]: found[2] for line in section.splitlines() if (found := ENTRY.fullmatch(line))}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower().replace("_", " ")))


def test_every_field_of_the_package_is_documented_by_an_entry_of_its_own() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert [f"{path.relative_to(PACKAGE)}: {each}" for path in files for each in complaints(path.read_text(encoding="utf-8"))] == []


MADE_UP = '''
@dataclass
class Cache:
    """A cache.

    Attributes:
        block_bytes: Of the block.
        slots: Tokens that fit, those
            that are reserved included.
        rows: A row.

    Raises:
        ValueError: dtype: no such one.
    """

    SIZES: ClassVar[int] = 2
    block_bytes: int
    slots: int
    dtype: str = "fp16"

class Pair(NamedTuple):
    """left: of the two. right: the other one, in a paragraph."""

    left: int
    right: int

@dataclasses.dataclass(frozen=True)
class Bare:
    size: int

class Plain:
    """No data class: its attributes may stand anywhere."""

    size: int
'''


def test_a_missing_a_meaningless_and_a_stale_entry_are_found() -> None:
    assert complaints(MADE_UP) == [
        "Cache.block_bytes is documented by its name alone",
        "Cache.dtype is not documented",
        "Cache.rows is documented and no field of the class",
        "Pair.left is not documented",
        "Pair.right is not documented",
        "Bare.size is not documented",
    ]
