"""From options to cells: the product of the lists, in a stable order, with nonsense refused before anything runs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.plugin.command_line import DEFAULT_ENGINE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_llminfer.plugin.options import MatrixSettings
    from pytest_llminfer.spec import EngineSpec


def expand(options: MatrixSettings) -> tuple[EngineSpec, ...]:
    """The cells that the options name, each once, in the order given.

    Raises:
        pytest.UsageError: a name that does not exist, or parallel sizes that do not fit the GPUs.
    """
    from pytest_llminfer.engines.profiles import read_engine
    from pytest_llminfer.errors import BadInputError, InvalidSpecError
    from pytest_llminfer.spec import EngineSpec

    cells = []
    parallelisms = _parallelisms(options)
    for engine, model, weights, dtype, quantization, kv_dtype in itertools.product(
        options.engine, options.model, options.weights, options.dtype, options.quantization, options.kv_dtype
    ):
        for tp, pp, dp, replication in parallelisms:
            try:
                name, environment = read_engine(engine)
                place = (name, environment, model, weights, dtype, quantization, kv_dtype, tp, pp, dp, replication)
                cells.append(EngineSpec(*place, serve=options.serve))
            except InvalidSpecError as error:
                flag = "--" + error.name.replace("distribution", "engine").replace("_", "-")
                raise pytest.UsageError(f"{flag}: {error}") from None
    try:
        _check_addresses(cells)
    except BadInputError as error:
        raise pytest.UsageError(f"--engine: {error}") from None
    if not cells:
        raise pytest.UsageError("no cell to test: --engine, --model, --dtype and --quantization each need a value")
    return tuple(dict.fromkeys(cells))


def _check_addresses(cells: Iterable[EngineSpec]) -> None:
    """Refuse an engine that is a server and has no address, or the other way round.

    Raises:
        BadInputError: the profile of another distribution's engine that cannot be loaded.
    """
    from pytest_llminfer.engines.profiles import profile

    for cell in cells:
        if cell.engine == DEFAULT_ENGINE and not cell.is_remote:
            # A session that may not use any engine loads no profile.
            continue
        remote = profile(cell.engine).remote
        if remote and not cell.is_remote:
            raise pytest.UsageError(f"--engine={cell.engine} needs an address: {cell.engine}@http://host:port/v1")
        if cell.is_remote and cell.serve:
            raise pytest.UsageError(f"--serve: {cell.environment} is a server already; it starts those of engines that run here")
        if cell.is_remote and not remote:
            raise pytest.UsageError(f"--engine: a server at an address is the engine openai: openai@{cell.environment}")


def _parallelisms(options: MatrixSettings) -> list[tuple[int, int, int, str]]:
    """(tp, pp, dp, replication): as chosen, or with ``--gpus=N`` alone one GPU, dp=N and tp=N side by side."""
    sizes = _sizes(options)
    # How replicas are made is a question only where there are any.
    return list(dict.fromkeys((tp, pp, dp, kind if dp > 1 else "workers") for tp, pp, dp in sizes for kind in options.replication))


def _sizes(options: MatrixSettings) -> list[tuple[int, int, int]]:
    gpus = options.gpus
    if not (options.tp or options.pp or options.dp):
        return [(1, 1, 1)] if gpus in (None, 1) else [(1, 1, 1), (1, 1, gpus), (gpus, 1, 1)]
    parallelisms = list(itertools.product(options.tp or (1,), options.pp or (1,), options.dp or (1,)))
    if gpus is not None:
        for tp, pp, dp in parallelisms:
            if gpus % (tp * pp * dp):
                divisors = [str(n) for n in range(1, gpus + 1) if gpus % n == 0]
                raise pytest.UsageError(
                    f"tp={tp} x pp={pp} x dp={dp} does not divide --gpus={gpus}; products that do: {', '.join(divisors)}"
                )
    return parallelisms
