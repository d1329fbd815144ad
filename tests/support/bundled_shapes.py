"""The bundled shapes, and what the model of memory says that they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest_llminfer
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.predict.weights import HeldWeight, held_weights

GIB, MIB = 2**30, 2**20
SHAPES = Path(pytest_llminfer.__file__).parent / "models" / "shapes"


def bundled(name: str, **changes: Any) -> Any:
    config = json.loads((SHAPES / name / "config.json").read_text()) | changes
    return config, ModelShape.from_config(config)


def held(name: str, engine: str = "transformers", **cell: Any) -> tuple[HeldWeight, ...]:
    return held_weights(bundled(name)[1], **{"dtype": "bf16", **cell, "engine": profile(engine)})[0]
