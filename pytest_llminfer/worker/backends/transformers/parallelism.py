"""Which cells transformers can split over devices, known before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.spec import EngineSpec


def check_parallelism(spec: EngineSpec) -> None:
    """Refuse what transformers cannot split.

    Raises:
        UnsupportedError: pipeline or data parallelism, or tensor parallelism of quantized weights.
    """
    if spec.pp > 1:
        raise UnsupportedError(f"transformers has no pipeline parallelism for generation: pp={spec.pp}", "use pp=1")
    if spec.dp > 1:
        raise UnsupportedError(
            f"transformers has no data parallelism of its own: dp={spec.dp} with replication=native", "use replication=workers"
        )
    if spec.tp > 1 and spec.quantization != "none":
        raise UnsupportedError(
            f"transformers cuts bitsandbytes weights without their scales, and the model then cannot compute: "
            f"quantization={spec.quantization} with tp={spec.tp}",
            "use tp=1 or quantization=none",
        )


def check_heads(configuration: Mapping[str, Any], tp: int) -> None:
    """Refuse a model whose heads do not divide by the ranks.

    Raises:
        UnsupportedError: ``tp`` does not divide the attention heads or the KV heads.
    """
    text = configuration.get("text_config") or configuration
    heads = text.get("num_attention_heads")
    for name, count in (("attention heads", heads), ("KV heads", text.get("num_key_value_heads") or heads)):
        if count and count % tp:
            raise UnsupportedError(f"{count} {name} cannot be split over tp={tp} ranks", f"use a tp that divides {count}")
