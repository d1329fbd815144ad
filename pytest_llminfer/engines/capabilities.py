"""What each engine can be asked, known before one starts: a test that needs more is not collected for its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pytest_llminfer.engines.profiles import loaded, profile
from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from pytest_llminfer.spec import EngineSpec

OF_SERVERS = frozenset({"generate", "generate:messages", "generate:logprobs", "score_top", "settings", "talk"})
"""What a server of any engine may answer over HTTP."""
STOP = "serving:stop"
"""Of a server that is started here."""


def possible_capabilities(spec: EngineSpec) -> frozenset[str] | None:
    """What the engine of a cell could answer, by the names in ``EngineInfo.capabilities``; None where nothing is known of it.

    A name that is not among them is answered by no start of this engine. One that is among them may still be missing: how an
    engine was started, and what a server offers, show when it runs.
    """
    if spec.over_http:
        return OF_SERVERS | {STOP} if spec.serve else OF_SERVERS
    of = profile(spec.engine)
    return of.capabilities - of.unsplit_capabilities if of.capabilities is not None and spec.tp > 1 else of.capabilities


def engines_that_answer(capability: str) -> tuple[str, ...]:
    """The engines whose profile says that they answer this request, by its name in ``EngineInfo.capabilities``."""
    return tuple(each.name for each in loaded() if each.capabilities is not None and capability in each.capabilities)


class Answers(Protocol):
    """A loaded engine, as far as what it answers is concerned."""

    def supports(self, capability: str) -> bool:
        """Whether it answers this request."""


def need(engine: Answers, capability: str, without: str) -> None:
    """Refuse to ask what an engine cannot answer.

    Args:
        engine: A loaded one.
        capability: A name in ``EngineInfo.capabilities``.
        without: What the engine lacks, as a sentence for whoever reads why a test was skipped.

    Raises:
        UnsupportedError: it does not answer it; the engines that do are named.
    """
    if not engine.supports(capability):
        raise UnsupportedError(without, f"engines that do: {', '.join(engines_that_answer(capability)) or 'none'}")


def every_capability() -> frozenset[str]:
    """All that any engine is known to answer."""
    return frozenset({STOP}).union(OF_SERVERS, *(each.capabilities or () for each in loaded()))
