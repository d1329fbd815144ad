"""The package as pip installs it: the suites and the recorded baselines come along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import REPOSITORY


def test_the_suites_run_from_an_installed_package(tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(REPOSITORY)]
    subprocess.run(pip, check=True, capture_output=True)
    assert (site / "pytest_llminfer" / "bundled_baselines" / "any" / "reference" / "gsm8k.json").is_file()
    assert (site / "pytest_llminfer" / "models" / "reference" / "model.safetensors").is_file()
    command = [sys.executable, "-m", "pytest", "--pyargs", "pytest_llminfer.suites", "--engine=simulated", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", "not throughput and not gsm8k", "-rs"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"layout", "kv_cache", "memory"} <= set(done.stdout.split())
