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
        *("layout", "memory", "ranks", "settings", "calibrate", "reference_step", "run"),
    }
)
"""Capabilities of every engine of this package that runs here."""
LOOP = frozenset({"generate:loop", "score:decode", "kv_cache"})
"""Of engines whose cache a hand-written loop can drive."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one distribution needs beside itself to answer every request.

    Attributes:
        extras: Extras of the distribution; empty for none.
        beside: Further requirements that are installed with it.
        suspects: Packages that are removed where they cannot be imported.
        alias: Another distribution name under which its metadata are looked up; empty for none.
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

    Attributes:
        recipe: How its environment is made.
        instead_of_gpus: For a distribution whose wheels are for NVIDIA GPUs only (gigabytes that do not run on a processor), what
            to use instead; empty for others.
    """

    recipe: Recipe = NOTHING_ELSE
    instead_of_gpus: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What ``llminfer doctor`` looks for in an interpreter, and suggests where it is missing.

    Attributes:
        distributions: Distributions that bring the engine, the likelier first; empty where any module of that name will do.
        modules: Modules that it needs, its own first.
        attribute: ``module:name``, whose import proves that the engine works.
        packages: What pip installs.
        extra: Whether this package has an extra of the engine's name.
        advised: Requirement of a new environment, at the version that is tested; empty for none.
        advised_on_cpu: The same for a machine without a GPU; empty for ``advised``.
        gpu_variables: Variables that make pip build the distribution for GPUs; empty for an engine that sees GPUs through torch.
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
    """One engine. ``name``, ``backend`` and ``takes_gpus`` are required; the rest is optional.

    The fields of :class:`~pytest_llminfer.predict.rules.EngineRules` say what is predicted of it. Its ``name`` is that in
    ``--engine``: lower-case letters, digits and underscores.

    Attributes:
        backend: ``module:Class`` of its backend (``worker.backends.base.Backend``), imported only in a worker. A backend of another
            distribution is imported from that distribution's own files, whatever interpreter the worker runs in.
        takes_gpus: Whether a worker is given accelerators where there are any.
        remote: Whether it is a server that someone else runs, named by an address.
        for_tests: Whether it exists for tests of the harness only: ``llminfer doctor`` does not count it unless it is named.
        has_transformers: Whether a probe in a worker finds transformers beside the engine, which reads the model's chat template
            there. Unless it is True, the test of that is not collected.
        dummy_weights: Where random weights are drawn: on the ``host``, the same for every device and split, or on the ``device``,
            by each rank for itself. With None, asking whether a cell of dummy weights is the same model elsewhere raises
            UnsupportedError.
        repacks: Whether quantized weights are reordered for the device's kernels. With None, asking whether the layout of quantized
            weights depends on the device raises UnsupportedError.
        installation: What ``llminfer doctor`` looks for. With None, looking for the engine raises UnsupportedError.
        builds: Distribution to how it is installed; others cannot be written as ``--engine=NAME==VERSION``.
        invariant_variable: Environment variable that is set to 1 for the engine's promise that answers do not depend on the batch,
            bit by bit; empty where there is none.
        invariant_argument: Engine argument that is set to True for the same promise; empty where there is none.
        variants: Name of a variant of ``suites/test_execution_modes.py`` to the engine arguments that start it; others are not
            collected for this engine.
        capabilities: Names of the requests that the backend answers (``Backend.capabilities``), or answers if it is started
            accordingly (vLLM with a prefix cache). With None, a test that needs some is collected, and skipped where the loaded
            backend does not answer.
        unsplit_capabilities: Those of them that a model on several tensor ranks does not answer.
        capacity_args: Engine arguments that say how much of a device the engine takes: they decide memory and speed, and no answer.
        operational_args: Engine arguments that decide neither, such as a time limit; they are no condition of any record.
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
    variants: Mapping[str, Arguments] = field(default_factory=dict)
    capabilities: frozenset[str] | None = None
    unsplit_capabilities: frozenset[str] = frozenset()
    capacity_args: frozenset[str] = frozenset()
    operational_args: frozenset[str] = frozenset()

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
