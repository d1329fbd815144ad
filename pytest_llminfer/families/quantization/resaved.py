"""A model saved in shards and loaded again: nothing lost, nothing made up, the same logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Mapping


def check_resaved(*, saved: Mapping[str, Any], shard_bytes: int) -> Verdict:
    """Whether every file keeps to the size asked for, the index names every tensor where it lies, and reloading gives equal logits.

    saved: ``files`` (bytes of tensors by name), ``largest_tensor`` (bytes: what cannot be split), ``indexed`` and ``stored``
    (file by tensor name), ``missing`` (names that loading made up), ``largest_difference`` (of logits), ``positions``.
    """
    files, indexed, stored = saved["files"], saved["indexed"], saved["stored"]
    most = max(shard_bytes, saved["largest_tensor"])
    lines = [f"{name} holds {size:,} bytes" for name, size in files.items() if size > most]
    lines += [f"{name} is in no index" for name in sorted(stored.keys() - indexed.keys())]
    lines += [f"{name} is in the index and in no file" for name in sorted(indexed.keys() - stored.keys())]
    lines += [
        f"{name} lies in {stored[name]}, the index says {indexed[name]}"
        for name in sorted(stored.keys() & indexed.keys())
        if stored[name] != indexed[name]
    ]
    lines += [f"{name} was made up on loading" for name in saved["missing"]]
    if saved["largest_difference"] != 0:
        lines.insert(0, f"the logits differ by up to {saved['largest_difference']:.3g}")
    if len(files) < 2:  # noqa: PLR2004 - one file has no index, and proves nothing
        lines.insert(0, f"{len(files)} file was written: the maximum of {shard_bytes:,} bytes did not split the model")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="saved in shards and loaded again, the model gives bit-equal logits",
        key=f"{len(files)} files",
        measurements=(
            Measurement("files", len(files), "files", len(stored), f"at most {shard_bytes:,} bytes each"),
            Measurement("largest difference of logits", saved["largest_difference"], "", saved["positions"]),
        ),
        threshold=f"difference 0, every tensor indexed, at most {most:,} bytes a file",
        threshold_source="a checkpoint is the model",
        smallest_detectable="exact",
        advice="compare the names in the index with those of the model; a tied tensor saved twice or not at all is the classic",
        details=first_offenders(lines),
    )
