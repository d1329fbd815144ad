"""How the transformers backend stores weights, whatever their format, and what memory it says that they take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.layout import Parameter
from pytest_llminfer.predict.layout import expected_layout
from tests.support.engines import processes, transformers_workers
from tests.support.engines.transformers_workers import QUANTIZATIONS, Worker
from tests.support.paths import REFERENCE

prompts, start = transformers_workers.prompts, transformers_workers.start

# What the framework holds beside the weights: small buffers on a CPU, the workspace of cuBLAS on a GPU.
BESIDE_WEIGHTS = {"cpu": 1 << 16, "cuda": 1 << 26}


@pytest.fixture(scope="module", params=QUANTIZATIONS)
def quantized(request: pytest.FixtureRequest, start: Callable[..., Worker]) -> Worker:
    worker = start()
    worker.quantization = request.param
    worker.info = worker.load(quantization=request.param)
    return worker


def test_every_parameter_is_stored_as_its_format_says(quantized: Worker) -> None:
    shape = ModelShape.from_config(json.loads((REFERENCE / "config.json").read_text()))
    weights = expected_layout(shape=shape, dtype="bf16", quantization=quantized.quantization, engine=profile("transformers"))
    expected = {weight.parameter.name: weight.parameter for weight in weights}
    answer = quantized.ask("layout")
    found = {entry["name"]: Parameter.from_message({**entry, "device": "cpu"}) for entry in answer["parameters"]}
    assert found == expected
    assert answer["tied"] == []
    assert found["lm_head.weight"].dtype == found["model.embed_tokens.weight"].dtype == "bfloat16"


def test_memory_layout_and_use_agree(quantized: Worker, prompts: list[list[int]]) -> None:
    report = quantized.ask("memory", reset_peak=True)
    layout = quantized.ask("layout")
    stored = sum(parameter["stored_bytes"] for parameter in layout["parameters"])
    assert report["weights_bytes"] == stored
    assert stored <= report["live_bytes"] <= stored + BESIDE_WEIGHTS[report["device"]]
    assert report["load_peak_bytes"] >= stored
    for _ in range(2):
        quantized.generate(prompts, ignore_eos=True)
    after = quantized.ask("memory")
    # Nothing about the weights may depend on whether they were used.
    assert quantized.ask("layout") == layout
    assert (after["weights_bytes"], after["buffers_bytes"]) == (stored, report["buffers_bytes"])
    lives = []
    for _ in range(3):
        quantized.generate(prompts)
        lives.append(quantized.ask("memory")["live_bytes"])
    assert len(set(lives)) == 1


def test_quantized_models_still_answer(quantized: Worker, prompts: list[list[int]]) -> None:
    answers = quantized.generate(prompts, max_tokens=100)
    assert sum(answer["finish_reason"] == "stop" for answer in answers) >= 10


def test_settings_and_calibration_are_told(quantized: Worker) -> None:
    settings = quantized.ask("settings")
    assert settings["resolved"]["attn_implementation"] == "sdpa"
    assert settings["resolved"]["max_position_embeddings"] == 2048
    assert (settings["resolved"]["quantization_config"] is None) == (quantized.quantization == "none")
    assert all(rate > 1e6 for rate in quantized.ask("calibrate").values())


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A folder with the reference model's config.json, tied, and nothing else."""
    configuration = json.loads((REFERENCE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**configuration, "tie_word_embeddings": True}))
    return tmp_path


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_dummy_weights_need_a_configuration_only(start: Callable[..., Worker], configuration: Path, quantization: str) -> None:
    worker = start()
    worker.load(configuration, weights="dummy", quantization=quantization)
    layout, memory = worker.ask("layout"), worker.ask("memory")
    assert memory["weights_bytes"] == sum(parameter["stored_bytes"] for parameter in layout["parameters"])
    assert memory["live_bytes"] - memory["weights_bytes"] <= BESIDE_WEIGHTS[memory["device"]]
    assert layout["tied"] == [["model.embed_tokens.weight", "lm_head.weight"]]
    packings = {Parameter.from_message(entry).packing for entry in layout["parameters"] if "q_proj" in entry["name"]}
    assert packings == {"" if quantization == "none" else quantization}
    (scores,) = worker.ask("score", sequences=[list(range(100, 120))])["logprobs"]
    assert np.isfinite(scores).all()
    norm = "def norm(model):\n    return model.get_parameter('model.layers.1.input_layernorm.weight').float().cpu().numpy()\n"
    (configuration / "norm.py").write_text(norm)
    assert (worker.ask("run", path=str(configuration / "norm.py"), function="norm", arguments={})["result"] == 1).all()


def test_dummy_weights_are_the_same_every_time_and_on_two_ranks(start: Callable[..., Worker], configuration: Path) -> None:
    scores, held = [], []
    for path, tp in ((configuration, 1), (configuration / "config.json", 1), (configuration, 2)):
        worker = start()
        worker.load(path, weights="dummy", dtype="fp32", tp=tp)
        scores += worker.ask("score", sequences=[list(range(100, 120))])["logprobs"]
        held.append([rank["weights_bytes"] for rank in worker.ask("ranks")["ranks"]])
        layout = worker.ask("layout")
        tied = [rank["tied"] for rank in layout.get("ranks", [layout])]
        assert tied == [[["model.embed_tokens.weight", "lm_head.weight"]]] * tp
    np.testing.assert_array_equal(*scores[:2])
    np.testing.assert_allclose(scores[1], scores[2], atol=1e-4)
    # Nine norms of 256 values are whole on both ranks, and nothing that a shard was cut from is kept.
    assert held[2][0] == held[2][1] == (held[1][0] + 4 * 9 * 256) // 2
    ranks = processes.group(worker.process.process.pid)
    assert len(ranks) == 2
    worker.process.close()
    assert not processes.left(ranks)
