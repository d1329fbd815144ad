"""Cards are found by the names that people and drivers write, and one that could be several is refused."""

from __future__ import annotations

import pytest

from pytest_llminfer.errors import InvalidSpecError
from pytest_llminfer.predict.gpus import GPUS, find_gpu

# As nvidia-smi and people write the name; MiB that nvidia-smi lists, and that cudaMemGetInfo gives to programs; 0: no source known.
CARDS = [
    ("NVIDIA A10", "a10", 23_028, 22_712),
    ("NVIDIA A10G", "A10g", 23_028, 0),
    ("NVIDIA A100-SXM4-40GB", "a100 40 GB", 40_960, 40_339),
    ("NVIDIA A100-PCIE-40GB", "A100-40GB", 40_960, 40_339),
    ("NVIDIA A100-SXM4-80GB", "a100 80gb", 81_920, 0),
    ("NVIDIA A100 80GB PCIe", "A100-80GB", 81_920, 0),
    ("NVIDIA B200", "b200", 0, 182_630),
    ("NVIDIA H100 80GB HBM3", "h100", 81_559, 0),
    ("NVIDIA H200", "h200-sxm", 143_771, 143_155),
    ("NVIDIA L4", "l4", 23_034, 0),
    ("NVIDIA L40S", "l40s", 46_068, 45_599),
    ("NVIDIA GeForce RTX 3090", "rtx 3090", 24_576, 0),
    ("NVIDIA GeForce RTX 4090", "RTX-4090", 24_564, 24_218),
    ("NVIDIA GeForce RTX 5090", "geforce rtx 5090", 32_607, 0),
    ("Tesla T4", "t4", 15_360, 0),
]


@pytest.mark.parametrize(("driver", "person", "listed", "cuda"), CARDS)
def test_a_card_is_found_by_the_words_of_the_driver_and_of_people(driver: str, person: str, listed: int, cuda: int) -> None:
    gpu = find_gpu(driver)
    assert (gpu.listed_mib, gpu.cuda_mib) == (listed, cuda)
    assert gpu.total == (cuda or listed) * 2**20
    assert find_gpu(person) == gpu


def test_every_card_has_a_source_and_is_found_by_a_name_of_the_driver() -> None:
    assert {find_gpu(driver) for driver, *_ in CARDS} == set(GPUS)
    assert all(gpu.source for gpu in GPUS)


@pytest.mark.parametrize("name", ["", "nvidia", "A100", "RTX", "H1"])
def test_a_name_of_no_card_or_of_several_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpecError, match=f"GPU '{name}'.*A10G"):
        find_gpu(name)
