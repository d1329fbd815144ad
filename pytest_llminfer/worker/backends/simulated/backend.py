"""The simulated engine as a backend: needs NumPy only, answers everything, and can be made to fail."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.checkpoints.safetensors import read_configuration
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.worker.backends import probe, requests
from pytest_llminfer.worker.backends.batching import plan_batches
from pytest_llminfer.worker.backends.host import median_seconds, processor_name, python_loops_per_second
from pytest_llminfer.worker.backends.simulated import generation, scoring
from pytest_llminfer.worker.backends.simulated.clock import Clock
from pytest_llminfer.worker.backends.simulated.faults import Faults
from pytest_llminfer.worker.backends.simulated.llama import Llama
from pytest_llminfer.worker.backends.simulated.profile import Profile
from pytest_llminfer.worker.backends.simulated.shape import Shape
from pytest_llminfer.worker.backends.simulated.weights import random_weights, read_weights
from pytest_llminfer.worker.backends.speed import reference_numpy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress

MAX_BATCH_TOKENS = 1 << 14
_MATMUL_SIZE, _COPY_BYTES = 512, 32 << 20


class SimulatedBackend:
    """A Llama in float32. ``engine_args``: ``max_batch_tokens``, and ``fault`` with its arguments (see ``faults.FAULTS``).

    With ``accelerator`` it tells the time by a modelled clock, as an accelerator and its host would (see ``clock.Clock``).
    """

    capabilities = frozenset(
        {
            *("generate", "generate:loop", "generate:no_cache", "generate:logprobs"),
            *("score", "score:decode", "score_top"),
            *("layout", "memory", "kv_cache", "ranks", "settings", "calibrate", "reference_step", "run"),
        }
    )

    _model: Llama
    _faults: Faults
    _load_peak_bytes: int
    _max_batch_tokens: int
    _limits: dict[str, int]

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        self._spec, self._model_path, self._progress = spec, model_path, progress
        self._engine_args = dict(engine_args)
        self._profile = Profile()

    def warm(self) -> None:
        """NumPy has been imported."""

    def load(self) -> Message:
        """Read the weights, or make random ones from a configuration."""
        start = time.perf_counter()
        self._check_spec()
        given = self._engine_args.pop("max_batch_tokens", None)
        modelled = bool(self._engine_args.pop("accelerator", False))
        self._faults = Faults.read(self._engine_args)
        self._clock = Clock(self._faults) if modelled else None
        self.capabilities = type(self).capabilities | ({"trace"} if modelled else set())
        self._max_batch_tokens = self._faults.default(MAX_BATCH_TOKENS) if given is None else given
        self._progress("loading", 0, 1)
        shape = Shape.read(read_configuration(self._model_path))
        weights = random_weights(shape) if self._spec.weights == "dummy" else read_weights(Path(self._model_path), shape)
        self._faults.store(weights)
        self._model = Llama(shape, weights)
        self._limits = {"vocab_size": shape.vocab_size, "max_positions": shape.max_position_embeddings}
        self._profile.take(self._model.nbytes)
        self._load_peak_bytes = self._profile.peak_bytes
        self._progress("loading", 1, 1)
        return {
            "dtype": "fp32",
            "kv_dtype": "fp32",
            "device": "cpu",
            "device_name": processor_name(),
            "device_count": 1,
            "capabilities": sorted(self.capabilities),
            "versions": {"engine": f"numpy {np.__version__}", "numpy": np.__version__, "python": platform.python_version()},
            "load_seconds": {"import": 0.0, "load": time.perf_counter() - start},
            "end_token_ids": list(shape.end_token_ids),
        }

    def generate(
        self, *, prompts: Sequence[Sequence[int]], sampling: Message, logprobs: int = 0, cache_path: str = "engine"
    ) -> Message:
        """Answers in the order of the prompts. Faults act on cache path ``engine`` alone."""
        requests.check_sampling(sampling, cache_path=cache_path)
        requests.check_tokens(prompts, extra=sampling["max_tokens"], **self._limits)
        self._begin_request()
        request = generation.Request(prompts, sampling, self._model.shape.end_token_ids, logprobs)
        if cache_path != "engine":
            generation.one_by_one(self._model, request, cached=cache_path == "loop", progress=self._progress)
            return {"outputs": request.outputs()}
        start = time.perf_counter()
        leaked = len(self._faults.leaked)
        self._faults.strike()
        self._profile.take(sum(array.nbytes for array in self._faults.leaked[leaked:]))
        generation.by_batches(
            self._model, request, self._faults, self._profile, max_batch_tokens=self._max_batch_tokens, progress=self._progress
        )
        outputs = request.outputs()
        self._faults.change_answers(outputs, prompts, self._model.shape.vocab_size)
        self._faults.linger(time.perf_counter() - start)
        steps = max((len(output["token_ids"]) for output in outputs), default=0)
        return {"outputs": outputs, **({"seconds": self._clock.seconds(steps)} if self._clock is not None else {})}

    def score(self, *, sequences: Sequence[Sequence[int]], cache_path: str = "prefill") -> Message:
        """Log-probabilities of given tokens; cache path ``decode`` feeds them one by one, and is where a damaged cache shows."""
        requests.check_cache_path(cache_path, requests.SCORE_PATHS)
        requests.check_tokens(sequences, least=2, **self._limits)
        self._begin_request()
        scores = []
        for number, sequence in enumerate(sequences):
            if cache_path == "prefill":
                scores.append(scoring.by_prefill(self._model, sequence))
            else:
                scores.append(scoring.by_decode(self._model, sequence, self._faults, self._profile))
            self._progress("scoring", number + 1, len(sequences))
        return {"logprobs": scores}

    def score_top(self, *, sequences: Sequence[Sequence[int]], top: int, last: int) -> Message:
        """The last tokens over the cache that those before them left, where faults act; sequences of like length together."""
        requests.check_tokens(sequences, least=last + 2, **self._limits)
        self._begin_request()
        batches = plan_batches([len(ids) - 1 for ids in sequences], max_tokens=0, max_batch_tokens=self._max_batch_tokens)
        scored = scoring.Scored(self._model, self._faults, self._profile, top, last)
        return {"scores": scored.by_batches(sequences, batches, self._progress)}

    def layout(self) -> Message:
        """Every array of the weights."""
        shape = self._model.shape
        return {
            "parameters": [
                {
                    "name": name,
                    "dtype": str(array.dtype),
                    "shape": list(array.shape),
                    "stored_shape": list(array.shape),
                    "stored_bytes": array.nbytes,
                    "device": "cpu",
                }
                for name, array in self._model.weights.items()
            ],
            "tied": [["model.embed_tokens.weight", "lm_head.weight"]] if shape.tie_word_embeddings else [],
        }

    def memory(self, *, reset_peak: bool = False) -> Message:
        """Bytes by the engine's own books: weights, caches and what a fault has leaked."""
        report = {
            "device": "cpu",
            "weights_bytes": self._model.nbytes,
            "buffers_bytes": self._model.buffers_bytes,
            "live_bytes": self._profile.live_bytes,
            "load_peak_bytes": self._load_peak_bytes,
            "run_peak_bytes": self._profile.peak_bytes,
            "measured_by": "the engine's own books",
            "resolution_bytes": 0,
        }
        if reset_peak:
            self._profile.reset_peak()
        return report

    def kv_cache(self, *, prompt: Sequence[int], extend: int) -> Message:
        """The cache after the prompt, and what decoding did to it."""
        requests.check_tokens([prompt], extra=extend, **self._limits)
        self._begin_request()
        return scoring.cache_report(self._model, prompt, extend, self._faults, self._profile)

    def ranks(self) -> Message:
        """This process alone."""
        rank = {"pid": os.getpid(), "name": "simulated rank 0", "device": "cpu", "weights_bytes": self._model.nbytes}
        return {"ranks": [rank]}

    def settings(self) -> Message:
        """The configuration in force, and the only default."""
        resolved = {name: getattr(self._model.shape, name) for name in self._model.shape.__slots__}
        return {
            "resolved": {
                **resolved,
                "end_token_ids": list(self._model.shape.end_token_ids),
                "dtype": "float32",
                "max_batch_tokens": self._max_batch_tokens,
                "fault": self._faults.name,
            },
            "defaults": {"max_batch_tokens": self._faults.default(MAX_BATCH_TOKENS)},
            "versions": {"numpy": np.__version__},
        }

    def calibrate(self) -> Message:
        """What NumPy can do right now, or the modelled accelerator."""
        if self._clock is not None:
            rate = self._clock.rate()
            return {"matmul_flops_per_second": 150 * rate, "copy_bytes_per_second": rate, "python_loops_per_second": 1e7}
        left, right = np.random.default_rng(0).standard_normal((2, _MATMUL_SIZE, _MATMUL_SIZE), np.float32)
        source = np.ones(_COPY_BYTES, np.uint8)
        target = np.empty_like(source)
        return {
            "matmul_flops_per_second": 2 * _MATMUL_SIZE**3 / median_seconds(lambda: left @ right),
            "copy_bytes_per_second": 2 * _COPY_BYTES / median_seconds(lambda: np.copyto(target, source)),
            "python_loops_per_second": python_loops_per_second(),
        }

    def reference_step(self) -> Message:
        """A frozen step of NumPy, or of the modelled clock."""
        return self._clock.reference_step() if self._clock is not None else dict(reference_numpy.measure())

    def trace(self, *, batches: Sequence[Sequence[Sequence[int]]], sampling: Message) -> Message:
        """What the modelled accelerator does while it generates for each batch."""
        if self._clock is None:
            raise UnsupportedError("the simulated engine has no accelerator", "start it with the engine argument accelerator=true")
        for prompts in batches:
            self.generate(prompts=prompts, sampling=sampling)
        return self._clock.trace(len(batches) * sampling["max_tokens"])

    def run(self, *, path: str, function: str, arguments: Message) -> Message:
        """The user's function, called with the live :class:`~pytest_llminfer.worker.backends.simulated.llama.Llama`."""
        return probe.call_probe(path, function, self._model, arguments)

    def close(self) -> None:
        """Nothing: NumPy's arrays end with the process."""

    def _begin_request(self) -> None:
        before = self._model.nbytes
        self._faults.begin_request()
        self._faults.store(self._model.weights)
        self._profile.take(self._model.nbytes - before)

    def _check_spec(self) -> None:
        requests.check_parallelism(self._spec)
        for name, possible in (("dtype", ("auto", "fp32")), ("quantization", ("none",)), ("kv_dtype", ("auto", "fp32"))):
            if getattr(self._spec, name) not in possible:
                raise UnsupportedError(
                    f"the simulated engine computes in float32 only: {name}={getattr(self._spec, name)} is not possible",
                    f"use {' or '.join(possible)}",
                )
