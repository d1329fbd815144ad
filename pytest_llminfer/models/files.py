"""The files of a model: where they are, what is in them, and a fingerprint of them all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.spec import REFERENCE_MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).resolve().parent
SHAPES = HERE / "shapes"
_METADATA = ("*.json", "*.jinja", "tokenizer*")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_WHOLE_FILE_BYTES = 64 * 2**20
_SLICES = 64
_SLICE_BYTES = 64 * 2**10
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # what the safetensors library accepts


def find(name: str, weights: str) -> tuple[Path, str]:
    """The folder with the metadata, and what the engine is to load: the folder, or the id on the hub.

    Raises:
        BadInputError: nothing of this name here or on the hub, or a bundled shape that is asked for real weights.
    """
    if name == REFERENCE_MODEL:
        return HERE / REFERENCE_MODEL, str(HERE / REFERENCE_MODEL)
    shapes = sorted(path.name for path in SHAPES.iterdir())
    if name in shapes:
        if weights != "dummy":
            raise BadInputError(
                f"{name} is a bundled shape without weights: add --weights=dummy, or give the path of a model folder"
            )
        return SHAPES / name, str(SHAPES / name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve(), str(_gguf_in(folder) or folder.resolve())
    if folder.suffix == ".gguf" and folder.is_file():
        return folder.parent.resolve(), str(folder.resolve())
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise BadInputError(
            f"the model {name!r} is no folder here; give the path of a folder with config.json, "
            f"an id such as Qwen/Qwen2.5-0.5B-Instruct, or a bundled shape ({', '.join(shapes)}) with --weights=dummy"
        )
    return _fetch_metadata(name), name


def _gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds one in place of a configuration.

    Raises:
        BadInputError: it holds several.
    """
    files = sorted(folder.glob("*.gguf"))
    if not files or (folder / "config.json").is_file():
        return None
    if len(files) > 1:
        shown = ", ".join(file.name for file in files)
        raise BadInputError(
            f"{folder} holds {len(files)} GGUF files and no config.json: name one of {shown}, as in --model={files[0]}"
        )
    return files[0].resolve()


def is_here(name: str) -> bool:
    """Whether a model's files lie on this machine: whether :func:`find` fetches nothing."""
    path = Path(name).expanduser()
    bundled = name == REFERENCE_MODEL or name in {shape.name for shape in SHAPES.iterdir()}
    return bundled or path.is_dir() or (path.suffix == ".gguf" and path.is_file())


def snapshot_of(folder: Path) -> tuple[str, str]:
    """Repository and commit of a folder in the hub's cache, ``models--ORG--NAME/snapshots/COMMIT``; of another two empty texts."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return "", ""
    return repository.removeprefix("models--").replace("--", "/", 1), folder.name


def _fetch_metadata(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise BadInputError(f"reading {name} from the hub needs huggingface_hub: pip install 'pytest-llminfer[suites]'") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(_METADATA)))
    except Exception as error:
        raise BadInputError(f"the model {name!r} is no folder here and cannot be read from the hub: {first_line(error)}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        BadInputError: a file that cannot be read, or that holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"the model folder {path.parent} has no readable {path.name} ({error.strerror})") from error
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON ({error}); fetch the file again") from error
    if not isinstance(found, dict):
        raise BadInputError(f"{path} holds a {type(found).__name__} instead of a JSON object; fetch the file again")
    return found


def fingerprint(config: Mapping[str, Any], folder: Path, *, weights: str, from_hub: bool, only: str = "") -> str:
    """sha256 of the configuration and, unless they are drawn, the weights in ``folder``, or the file ``only`` there.

    A file counts with its name and size, and with all of its content up to 64 MiB. Of a larger one come the whole header of a
    safetensors file and 64 slices of 64 KiB, spread evenly from its first byte to its last: a change of a whole stretch of
    1/63 of the file is always seen, a smaller one only where a slice lies.

    from_hub: the engine loads by id. The commit then stands for the weights, whether or not they are in the folder: it names
    their content, and the result stays the same once the engine has fetched them.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    if weights != "real":
        return digest.hexdigest()
    if from_hub and folder.parent.name == "snapshots":
        digest.update(f"commit:{folder.name}".encode())
        return digest.hexdigest()
    patterns = (only,) if only else _WEIGHTS
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        digest.update(path.read_bytes() if size <= _WHOLE_FILE_BYTES else _sample(path, size))
    return digest.hexdigest()


def _sample(path: Path, size: int) -> bytes:
    parts = []
    with path.open("rb") as stream:
        if path.suffix == ".safetensors":
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            parts.append(stream.read(min(length, _LONGEST_HEADER)))
        for number in range(_SLICES):
            stream.seek((size - _SLICE_BYTES) * number // (_SLICES - 1))
            parts.append(stream.read(_SLICE_BYTES))
    return b"".join(parts)


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
