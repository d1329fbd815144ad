"""A package index of tiny hand-made wheels, and a stand-in for uv that installs from it."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

UV = """#!{python}
import json, os, pathlib, shutil, subprocess, sys, time, zipfile

arguments = sys.argv[1:]
with open({calls!r}, "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
time.sleep(float(os.environ.get("FAKE_UV_SECONDS", "0")))
if arguments[0] == "venv":
    interpreter, folder = arguments[arguments.index("--python") + 1], arguments[-1]
    raise SystemExit(subprocess.call([interpreter, "-m", "venv", "--without-pip", folder]))
action, python = arguments[1], pathlib.Path(arguments[arguments.index("--python") + 1])
(site,) = (python.parent.parent / "lib").glob("python*/site-packages")
words, names = iter(arguments[2:]), []
for word in words:
    if word in ("--python", "-c", "--extra-index-url"):
        next(words)
    elif not word.startswith("-"):
        names.append(word)
for word in names:
    if action == "uninstall":
        for path in [site / word, *site.glob(word + "-*.dist-info")]:
            shutil.rmtree(path)
        continue
    name, _, version = word.replace(">=", "==").partition("==")
    name = name.partition("[")[0].replace("-", "_")
    found = sorted(pathlib.Path(os.environ["PIP_FIND_LINKS"]).glob(name + "-" + ("*" if ">=" in word else version) + "-*.whl"))
    if not found:
        print("error: No solution found when resolving dependencies: there is no version of", word, file=sys.stderr)
        raise SystemExit(1)
    zipfile.ZipFile(found[-1]).extractall(site)
"""


def wheel(folder: Path, name: str, version: str, code: str = "", *, requires: Sequence[str] = ()) -> None:
    """Write a wheel of a package ``name`` that holds ``code``."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requires)]
    files = {
        f"{module}/__init__.py": code,
        f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def fake_uv(folder: Path) -> Path:
    """Put a program ``uv`` into ``folder``; returns the file to which it writes its arguments, one JSON list a call."""
    folder.mkdir(parents=True, exist_ok=True)
    calls = folder / "calls.jsonl"
    calls.touch()
    program = folder / "uv"
    program.write_text(UV.format(python=sys.executable, calls=str(calls)))
    program.chmod(0o755)
    return calls
