"""Cards are found by the names that people and drivers write, and one that could be several is refused."""

from __future__ import annotations

import pytest

from pytest_llminfer.errors import InvalidSpecError
from pytest_llminfer.predict.gpus import GPUS, find_gpu


@pytest.mark.parametrize("name", [gpu.name for gpu in GPUS])
def test_every_card_is_found_by_its_name_and_as_nvidia_smi_writes_it(name: str) -> None:
    assert find_gpu(name).name == find_gpu(f"NVIDIA {name}").name == find_gpu(name.lower().replace(" ", "-")).name == name
    gpu = find_gpu(name)
    assert gpu.source
    assert 0 < gpu.total == (gpu.cuda_mib or gpu.listed_mib) * 2**20
    assert not gpu.listed_mib or 0.98 < gpu.total / 2**20 / gpu.listed_mib <= 1


@pytest.mark.parametrize(
    ("written", "name"),
    [("NVIDIA H100 80GB HBM3", "H100 80GB"), ("h100", "H100 80GB"), ("NVIDIA A100-SXM4-40GB", "A100 40GB"), ("Tesla T4", "T4")],
)
def test_cards_have_several_names(written: str, name: str) -> None:
    assert find_gpu(written).name == name


@pytest.mark.parametrize("name", ["", "nvidia", "A100", "RTX", "H1"])
def test_a_name_of_no_card_or_of_several_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpecError):
        find_gpu(name)
