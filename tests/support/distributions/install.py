"""Install the distribution ``llminfer-echo`` into a folder, as ``pip install --target`` would: its package and its metadata."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

ECHO = Path(__file__).with_name("echo")
GROUP = "pytest_llminfer.engines"


def install_echo(target: Path, *, point: str = "", engine: str = "echo") -> Path:
    """The folder, to be put on ``PYTHONPATH``.

    point: what the entry point names instead of the profile. engine: under which name.
    """
    project = tomllib.loads((ECHO / "pyproject.toml").read_text())["project"]
    shutil.copytree(ECHO / "llminfer_echo", target / "llminfer_echo", ignore=shutil.ignore_patterns("__pycache__"))
    metadata = target / f"llminfer_echo-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    named = point or project["entry-points"][GROUP]["echo"]
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{engine} = {named}\n")
    return target
