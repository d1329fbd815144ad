"""What the fixture ``kv_equivalence`` does: every way through a KV cache, asked of an engine and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.engines.capabilities import need
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.families.kv_equivalence.check import Compared, check_cache_paths, check_first_layer, repeated
from pytest_llminfer.families.kv_equivalence.receptive_field import check_reach
from pytest_llminfer.families.kv_equivalence.stored import check_cached_tensors, check_quantized_cache
from pytest_llminfer.families.probes import bundled_probe
from pytest_llminfer.models.cut import SLIDING, STRUCTURES, CacheSizes, structure_config
from pytest_llminfer.verdict import Measurement, Outcome, Verdict
from pytest_llminfer.worker.protocol.cache_paths import CachePath

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hypothesis.strategies import SearchStrategy

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.families.kv_equivalence.drawing import PathCase

FAMILIES = (
    *("decode", "chunked", "multi-turn", "batched", "left-padded", "right-padded"),
    *("static", "sliding", "crop", "beams", "prefix", "quantized", "fp8"),
)
"""Of cache paths; each has a strategy of ``drawing``, which needs hypothesis."""
OWN = "own"
"""The configuration of the model that is served."""
SLIDING_SHAPES = tuple(name for name, config in STRUCTURES.items() if any(CacheSizes.from_config(config).windows))
"""Those of ``STRUCTURES`` with layers that have a window."""
QUANTIZED = frozenset({"quantized", "fp8"})
EXAMPLES = 4
"""Ways drawn a family."""
PROMPT = 48
"""Tokens of the prompt of :meth:`KVEquivalence.first_layer` where none is given."""


_CLAIM = "the distributions, keys and values of prefill"
_CLAIMS = dict.fromkeys(QUANTIZED, "the cache errs as its format does, neither more nor less")
_SHORTEST = 24
"""Tokens of a prompt of :meth:`KVEquivalence.first_layer`: what :func:`benign_cache_paths` needs."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A model with random weights of a cut configuration, in fp32, made by the engine's worker.

    Attributes:
        engine: The engine under test.
        name: What verdicts call the configuration.
        config: Content of the cut config.json.
        seed: Seed of the random weights.
    """

    engine: Engine
    name: str
    config: Mapping[str, Any]
    seed: int = 0

    @property
    def sizes(self) -> CacheSizes | None:
        """None for caches whose sizes are not known here: their cache paths are compared, their bytes are not."""
        try:
            return CacheSizes.from_config(self.config)
        except UnsupportedError:
            return None

    def strategy(self, family: str) -> SearchStrategy[PathCase]:
        """The cache paths of a family that are possible with this model.

        Raises:
            UnsupportedError: ``sliding`` with a model without a window.
        """
        from pytest_llminfer.families.kv_equivalence.drawing import STRATEGIES, Subject

        window = min((window for window in self.sizes.windows if window), default=0) if self.sizes else 0
        if family == "sliding" and not window:
            raise UnsupportedError(f"no layer of {self.name} has a window", "give a configuration with a sliding_window")
        return STRATEGIES[family](Subject(int(self.config["vocab_size"]), window))

    def ask(self, case: PathCase, *, again: bool = False) -> Compared:
        """Compare the cache path with prefill on the engine. again: also over one repeated token (:func:`repeated`)."""
        asked: Any = {"config": self.config, "dtype": "fp32", "seed": self.seed}
        found = self.engine.compare_cache_paths(case.sequences, candidate=case.cache_path, **asked)
        if not again:
            return Compared(case.cache_path, found)
        sequences, cache_path = repeated(case.sequences, case.cache_path)
        return Compared(case.cache_path, found, self.engine.compare_cache_paths(sequences, candidate=cache_path, **asked))

    def judged(self, family: str, compared: Sequence[Compared]) -> list[Verdict]:
        """On what the cache paths gave, and on what their caches hold."""
        claim, sizes = f"{self.name}, {family}: {_CLAIMS.get(family, _CLAIM)}", self.sizes
        if sizes is None:
            return [check_cache_paths(compared=compared, sizes=None, claim=claim)]
        if family in QUANTIZED:
            verdict = check_quantized_cache(compared=compared, sizes=sizes, claim=claim)
        else:
            verdict = check_cache_paths(compared=compared, sizes=sizes, claim=claim)
        stored = f"{self.name}, {family}: the cache has exactly the shape and bytes that the configuration implies"
        return [verdict, check_cached_tensors(compared=compared, sizes=sizes, dtype="fp32", claim=stored)]

    def fails(self, family: str, compared: Compared) -> bool:
        """Whether it has any verdict that is no PASS."""
        return any(verdict.outcome is not Outcome.PASS for verdict in self.judged(family, [compared]))


class KVEquivalence:
    """The KV cache of one engine. judge: called with every verdict; ends the test where it is not good enough."""

    def __init__(self, engine: Engine, judge: Callable[[Verdict], None]) -> None:
        self._engine, self._judge = engine, judge

    def structure(
        self,
        config: str | Mapping[str, Any] = OWN,
        *,
        families: Sequence[str] = FAMILIES,
        layers: int = 2,
        examples: int = EXAMPLES,
        seed: int = 0,
    ) -> None:
        """Every family of cache paths gives what prefill gives: in fp32, by a model with ``layers`` layers and random weights.

        config: ``own``, one of ``STRUCTURES``, or the content of a config.json; it is cut to what its cache depends on. families:
        of ``FAMILIES``. examples: ways that hypothesis draws of each, the same ones in every run; one that fails is made shorter.

        Raises:
            UnsupportedError: none of the families is possible with this engine and configuration: a visible skip.
        """
        name, refused = self._name(config), {}
        for family in families:
            try:
                for verdict in self.examine(family, config, layers=layers, examples=examples, seed=seed):
                    self._judge(verdict)
            except UnsupportedError as error:
                refused[family] = str(error)
        if len(refused) == len(families):
            raise UnsupportedError("; ".join(dict.fromkeys(refused.values())))
        if len(families) > 1:
            self._judge(_possible(name, families, refused))

    def examine(
        self,
        family: str,
        config: str | Mapping[str, Any] = OWN,
        *,
        layers: int = 2,
        examples: int = EXAMPLES,
        seed: int = 0,
        shortened: bool = True,
    ) -> list[Verdict]:
        """The verdicts of one family of :meth:`structure`, which are not judged. shortened: whether one that fails is.

        Raises:
            UnsupportedError: the engine has no such way through its cache, or not with this configuration.
        """
        if family not in FAMILIES:
            raise BadInputError(f"unknown family of cache paths {family!r}; valid: {', '.join(FAMILIES)}")
        from pytest_llminfer.families.kv_equivalence.drawing import draw_cases, shorten

        self._need()
        model = Structure(self._engine, self._name(config), structure_config(self._config(config), layers=layers), seed)
        strategy = model.strategy(family)
        compared = []
        for case in draw_cases(strategy, examples):
            compared.append(model.ask(case))
            if model.fails(family, compared[-1]):
                told = shorten(strategy, case, lambda other: model.fails(family, model.ask(other))) if shortened else case
                compared = [model.ask(told, again=True)]
                break
        return model.judged(family, compared)

    def first_layer(
        self, prompts: Sequence[Sequence[int]] | None = None, *, cache_paths: Sequence[CachePath] | None = None
    ) -> None:
        """Keys and values of the served model's first layer are equal to the last place by every cache path, in its own dtype.

        prompts: token ids, at least 24 of each. cache paths: those of :func:`benign_cache_paths` unless others are given.

        Raises:
            BadInputError: a prompt of fewer tokens. UnsupportedError: the engine cannot compare cache paths.
        """
        self._need()
        given = [list(ids) for ids in (prompts or self._engine.model.sample_prompts(1, PROMPT))]
        if min(map(len, given), default=0) < _SHORTEST:
            raise BadInputError(f"the first layer is compared over prompts of at least {_SHORTEST} tokens each")
        compared = []
        for ids in given:
            for cache_path in benign_cache_paths(len(ids)) if cache_paths is None else cache_paths:
                found = self._engine.compare_cache_paths([ids], candidate=cache_path)
                again = None
                if check_first_layer(compared=[Compared(cache_path, found)], claim="").outcome is not Outcome.PASS:
                    sequences, longer = repeated([ids], cache_path)
                    again = self._engine.compare_cache_paths(sequences, candidate=longer)
                compared.append(Compared(cache_path, found, again))
        claim = (
            f"keys and values of the first layer are equal by every cache path to the last place of {self._engine.info.kv_dtype}"
        )
        self._judge(check_first_layer(compared=compared, claim=claim))

    def window(self, config: str | Mapping[str, Any] = OWN, *, layers: int = 2, seed: int = 0) -> None:
        """A changed token changes what is predicted within its reach, and not a bit beyond it, by prefill and by decoding.

        In a model all of whose ``layers`` have the window W, each token is seen by itself and the next W - 1 of the layer above:
        its reach is layers x (W - 1).

        Raises:
            UnsupportedError: no layer of the configuration has a window.
        """
        self._need()
        name, cut = self._name(config), structure_config(self._config(config), layers=layers)
        window = max(CacheSizes.from_config(cut).windows)
        if not window:
            raise UnsupportedError(f"no layer of {name} has a window", "give a configuration with a sliding_window")
        if "layer_types" in cut:
            cut["layer_types"] = [SLIDING] * layers
        reach, position = layers * (window - 1), 5
        tokens = [(7 * number) % int(cut["vocab_size"]) for number in range(1, position + reach + window)]
        asked: Any = {"config": cut, "tokens": tokens, "position": position, "seed": seed}
        found = self._engine.run(bundled_probe("kv_equivalence.windows.changes"), **asked)
        claim = f"{name}: a token changes the {layers} x {window - 1} after it, and none beyond"
        self._judge(check_reach(changes=found, position=position, reach=reach, claim=claim))

    def _need(self) -> None:
        need(self._engine, "compare_cache_paths", f"{self._engine.spec} cannot answer 'compare_cache_paths'")

    def _config(self, config: str | Mapping[str, Any]) -> Mapping[str, Any]:
        if not isinstance(config, str):
            return config
        if config == OWN:
            return self._engine.model.config
        if config not in STRUCTURES:
            raise BadInputError(f"unknown structure {config!r}; valid: {OWN}, {', '.join(STRUCTURES)}, or a configuration")
        return STRUCTURES[config]

    @staticmethod
    def _name(config: str | Mapping[str, Any]) -> str:
        return config if isinstance(config, str) else str(config.get("model_type"))


def benign_cache_paths(length: int) -> tuple[CachePath, ...]:
    """Ways over ``length`` tokens that leave the first layer as it is: one of each family whose cache is not quantized."""
    half, most = length // 2, length - 8
    late = (half, most - half, *(1,) * (length - most))
    return (
        CachePath(chunks=(1,) * length),
        CachePath(chunks=(half, length - half)),
        CachePath(chunks=late, batch=3),
        CachePath(chunks=late, pads_left=5),
        CachePath(pads_right=3, batch=2),
        CachePath(chunks=late, cache="static"),
        CachePath(chunks=late, crop=half, crop_extra=4),
        CachePath(chunks=late, beams=2),
        CachePath(chunks=late, prefix=most),
    )


def _possible(name: str, families: Sequence[str], refused: Mapping[str, str]) -> Verdict:
    """Which families were compared; a quantized cache of a model with windows is refused by every engine."""
    done = len(families) - len(refused)
    return Verdict(
        outcome=Outcome.PASS,
        claim=f"{name}: every way through the KV cache that the engine has was compared",
        key=f"{done} of {len(families)} families",
        measurements=(Measurement("families of cache paths", done, "families", len(families)),),
        threshold="every family that the engine does not refuse",
        threshold_source="the engine's own refusals",
        smallest_detectable="exact",
        advice="",
        details=tuple(f"{family} was not: {reason}" for family, reason in refused.items()),
    )


__all__ = ["FAMILIES", "OWN", "SLIDING_SHAPES", "STRUCTURES", "KVEquivalence", "benign_cache_paths"]
