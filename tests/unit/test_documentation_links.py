"""The documentation that code, tests and pages point to is there: every file, and every heading in it."""

from __future__ import annotations

import posixpath
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

FOLDER = "docs"
SUFFIXES = {"", ".cfg", ".ini", ".j2", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
"""Of files that people write. Records and assets point nowhere."""

FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2[^\n]*$", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
MENTION = re.compile(rf"(?<![\w./-]){FOLDER}/[\w-]+\.md(?:#[\w-]+)?")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
FORMER_SOURCE = re.compile(rf"\b{'methods'.upper()}\b")
"""A collection of formulas outside the repository, which a reader of the repository does not have."""


def written_files() -> dict[Path, str]:
    """Path from the root → text of every file of the repository that people write, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = [Path(line) for line in listed.stdout.splitlines()]
    return {path: (REPOSITORY / path).read_text() for path in paths if path.suffix in SUFFIXES and (REPOSITORY / path).is_file()}


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown page.

    Markup is dropped; of the rest letters, digits, underscores, hyphens and spaces stay, in lower case, spaces as hyphens. The
    second heading of one anchor gets -1, the third -2.
    """
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(FENCED.sub("", page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def targets(path: Path, text: str) -> Iterator[str]:
    """What a file points to, as paths from the root with their anchors: pages it names, and the relative links of a page."""
    prose = text
    if path.suffix == ".md":
        prose = FENCED.sub("", text)
        for link in LINK.findall(INLINE_CODE.sub("", prose)):
            if not SCHEME.match(link) and not link.startswith("/"):
                name, _, anchor = link.partition("#")
                joined = posixpath.normpath(path.parent / name) if name else path.as_posix()
                yield f"{joined}#{anchor}" if anchor else joined
    yield from MENTION.findall(prose)


def dangling(files: Mapping[Path, str]) -> list[str]:
    """A line for everything in ``files`` that points to no file, or to no heading of a page. Pages are taken from ``files``."""
    headings = {path.as_posix(): anchors(text) for path, text in files.items() if path.suffix == ".md"}
    lines = []
    for path, text in files.items():
        for target in sorted(set(targets(path, text))):
            name, _, anchor = target.partition("#")
            if name not in headings and not (REPOSITORY / name).exists():
                lines.append(f"{path}: {target}: there is no {name}")
            elif anchor and name in headings and anchor not in headings[name]:
                lines.append(f"{path}: {target}: {name} has no such heading")
    return lines


def test_every_page_and_heading_that_is_pointed_to_exists() -> None:
    files = written_files()
    assert sum(FOLDER in path.parts for path in files) > 3
    assert not dangling(files)


def test_the_methods_page_is_cited_by_the_code() -> None:
    cited = {target for path, text in written_files().items() if path.suffix == ".py" for target in targets(path, text)}
    assert len({target for target in cited if target.startswith(f"{FOLDER}/methods.md#")}) >= 25


def test_nothing_cites_a_source_outside_the_repository() -> None:
    lines = [
        f"{path}:{number}: {line.strip()}"
        for path, text in written_files().items()
        for number, line in enumerate(text.splitlines(), 1)
        if FORMER_SOURCE.search(line)
    ]
    assert not lines


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("tests/x.py", f"# see {FOLDER}/page.md#second", ""),
        ("tests/x.py", f"# see {FOLDER}/page.md", ""),
        ("tests/x.py", f"# see https://example.org/{FOLDER}/other.md#absent", ""),
        ("tests/x.py", f"# see {FOLDER}/page.md#third", "no such heading"),
        ("tests/x.py", f"# see {FOLDER}/absent.md", f"there is no {FOLDER}/absent.md"),
        (f"{FOLDER}/other.md", "[text](page.md#first-of-all) and [more](#here)\n\n## Here", ""),
        (f"{FOLDER}/other.md", "[text\nover lines](page.md#first)", "no such heading"),
        (f"{FOLDER}/other.md", "[text](../absent.md)", "there is no absent.md"),
        (f"{FOLDER}/other.md", "[text](#here)", "no such heading"),
        (f"{FOLDER}/other.md", "`[code](#here)`\n\n```\n[code](absent.md)\n```", ""),
        ("README.md", f"[text]({FOLDER}/page.md#second-1) [site](https://example.org/absent.md)", ""),
        ("README.md", f"[text]({FOLDER}/page.md#second-2)", "no such heading"),
    ],
)
def test_what_points_nowhere_is_found(path: str, text: str, said: str) -> None:
    page = "# First: of *all*\n\n## Second\n\n```\n# third\n```\n\n### Second\n"
    lines = dangling({Path(f"{FOLDER}/page.md"): page, Path(path): text})
    assert len(lines) == bool(said)
    assert not said or said in lines[0]


def test_anchors_are_those_that_github_gives() -> None:
    page = "# The `--tp` option, and [pp](x.md)\n## e-values\n## Measured, to be built: KV\n## A_b (c) #\n## Ärger\n## e-values\n"
    assert anchors(page) == {"the---tp-option-and-pp", "e-values", "measured-to-be-built-kv", "a_b-c", "ärger", "e-values-1"}
