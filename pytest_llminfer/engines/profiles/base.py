"""What differs between engines and is not their backend: the fields of a profile, and what happens where one is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pytest_llminfer.predict.rules import EngineRules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llminfer.spec import EngineSpec

    Arguments = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]
    """Engine arguments of a variant, or what makes them from the sizes at hand (``execution_modes.variants.Sizes``)."""

SMALL_CHUNK = 64
"""Tokens of a batch in the variant ``small-chunks``."""

FULL = frozenset(
    {
        *("generate", "generate:no_cache", "generate:logprobs", "score", "score_top"),
        *("layout", "memory", "ranks", "settings", "calibrate", "run"),
    }
)
"""Capabilities of every engine of this package that runs here."""
LOOP = frozenset({"generate:loop", "score:decode", "kv_cache"})
"""Of engines whose cache a hand-written loop can drive."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one distribution needs beside itself to answer everything that an engine is asked.

    extras: of the distribution. beside: further requirements, installed with it. suspects: packages that are removed where
    they cannot be imported. alias: another name under which its metadata are looked up.
    """

    extras: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    alias: str = ""


NOTHING_ELSE = Recipe()
"""Of a distribution that needs nothing beside itself."""


@dataclass(frozen=True, slots=True)
class Build:
    """One distribution of an engine, as ``--engine=DISTRIBUTION==VERSION`` names it.

    recipe: how its environment is made. instead_of_gpus: of a distribution whose wheels are for NVIDIA GPUs alone, gigabytes that
    run on no processor, what there is instead; empty for others.
    """

    recipe: Recipe = NOTHING_ELSE
    instead_of_gpus: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What ``llminfer doctor`` looks for in an interpreter, and advises where it is missing.

    distributions: that bring the engine, the likelier first. modules: that it needs, its own first. attribute: ``module:name``,
    whose import is the real thing. packages: what pip installs. extra: whether this package has an extra of the engine's name.
    advised, advised_on_cpu: the requirement of a fresh environment, at the version that is tested; empty for none. gpu_variables:
    set for pip they make it build the distribution for GPUs; empty for an engine that sees GPUs through torch.
    """

    distributions: tuple[str, ...] = ()
    modules: tuple[str, ...]
    attribute: str
    packages: tuple[str, ...]
    extra: bool = True
    advised: str = ""
    advised_on_cpu: str = ""
    gpu_variables: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile(EngineRules):
    """One engine. ``name``, ``backend`` and ``takes_gpus`` must be given; the rest may be left out.

    The fields of :class:`~pytest_llminfer.predict.rules.EngineRules` are what is predicted of it.

    name: as in ``--engine``: lower-case letters, digits and underscores.
    backend: ``module:Class`` of its backend (``worker.backends.base.Backend``), imported in a worker alone. A backend of another
    distribution is imported from that distribution's own files, whatever interpreter the worker runs in.
    takes_gpus: whether a worker is given accelerators where there are any.
    remote: whether it is a server that somebody else runs, and is named with an address.
    for_tests: whether it is there for tests of the harness: ``llminfer doctor`` does not count it unless it is named.
    capabilities: names of the requests that the backend answers (``Backend.capabilities``), or answers if it is started so (vLLM
    with a prefix cache, say). Unset, a test that needs some is collected, and skipped where the loaded backend does not answer.
    unsplit_capabilities: those of them that a model on several tensor ranks does not answer.
    has_transformers: whether a probe in a worker finds transformers beside the engine, which reads the model's chat template
    there. Unset or False, the test of that is not collected.
    dummy_weights: where random weights are drawn: on the ``host``, the same for every device and split, or on the ``device``, by
    each rank its own. Unset, asking whether a cell of dummy weights is another model elsewhere raises UnsupportedError.
    repacks: whether quantized weights are put into the order of the device's kernels. Unset, asking whether the layout of
    quantized weights depends on the device raises UnsupportedError.
    installation: for ``llminfer doctor``. Unset, looking for the engine raises UnsupportedError.
    builds: distribution → how it is installed. One that is not named cannot be written as ``--engine=NAME==VERSION``.
    invariant_variable, invariant_argument: the environment variable (set to 1) and the engine argument (set) by which the engine
    promises that answers do not depend on the batch, bit by bit. Empty: it has no such promise.
    model_arguments: engine arguments that make another model of the same checkpoint, so that its weights alone are no reference.
    variants: name of a variant of ``suites/test_execution_modes.py`` → engine arguments that start it. One that is not named is
    not collected for this engine.
    """

    backend: str
    takes_gpus: bool
    remote: bool = False
    for_tests: bool = False
    has_transformers: bool | None = None
    dummy_weights: Literal["host", "device"] | None = None
    repacks: bool | None = None
    installation: Installation | None = None
    builds: Mapping[str, Build] = field(default_factory=dict)
    invariant_variable: str = ""
    invariant_argument: str = ""
    model_arguments: frozenset[str] = frozenset()
    variants: Mapping[str, Arguments] = field(default_factory=dict)
    capabilities: frozenset[str] | None = None
    unsplit_capabilities: frozenset[str] = frozenset()

    def draws_on_device(self, spec: EngineSpec) -> bool:
        """Whether the cell's weights are random and depend on the device.

        Raises:
            UnsupportedError: the profile does not say where dummy weights are drawn.
        """
        if spec.weights != "dummy":
            return False
        if self.dummy_weights is None:
            raise self.unsaid("dummy_weights", f"where {self.name} draws dummy weights")
        return self.dummy_weights == "device"

    def draws_per_rank(self, spec: EngineSpec) -> bool:
        """Whether the cell's weights are random and depend on how the model is split.

        Raises:
            UnsupportedError: the profile does not say where dummy weights are drawn.
        """
        return self.draws_on_device(spec) and spec.tp * spec.pp > 1

    def layout_depends_on_device(self, spec: EngineSpec) -> bool:
        """Whether the cell's weights are stored in another way on another device.

        Raises:
            UnsupportedError: the profile does not say whether quantized weights are repacked.
        """
        if spec.quantization == "none":
            return False
        if self.repacks is None:
            raise self.unsaid("repacks", f"whether {self.name} repacks quantized weights for a device")
        return self.repacks

    def installed_as(self) -> Installation:
        """What to look for in an interpreter.

        Raises:
            UnsupportedError: the profile does not say.
        """
        if self.installation is None:
            raise self.unsaid("installation", f"what {self.name} needs to be installed")
        return self.installation
