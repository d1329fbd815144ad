"""What goes wrong in one rank of a live model of vLLM or SGLang, called in both: nothing that its next answer must show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the environment of an engine has no pytest_llminfer
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.verdict import Verdict


def store_otherwise(model: Any) -> None:
    import torch

    # The same part on both ranks, whichever it is.
    model.lm_head.weight.data.zero_()
    if torch.distributed.get_rank() == 1:
        embedding, norm = model.model.embed_tokens, model.model.layers[2].input_layernorm
        embedding.weight = torch.nn.Parameter(torch.cat([embedding.weight, embedding.weight]), requires_grad=False)
        norm.weight = torch.nn.Parameter(norm.weight.float(), requires_grad=False)


SAID = (
    "tp rank 1: model.embed_tokens.weight: not sharded: the whole [1024, 256] instead of a part [512, 256]",
    "tp rank 1: model.layers.2.input_layernorm.weight: dtype float32 instead of bfloat16, stored_bytes 1,024 instead of 512",
    "lm_head.weight: the same part on tp rank 0 and tp rank 1: their bytes are equal",
)
"""What the layout check says of it."""


def check(engine: Engine) -> Verdict:
    """The layout of every rank, judged."""
    from pytest_llminfer.engines.profiles import profile
    from pytest_llminfer.families.layout.ranks import check_rank_layouts

    spec = engine.spec
    return check_rank_layouts(
        ranks=engine.rank_layouts(),
        shape=engine.model.shape,
        dtype=engine.info.dtype,
        quantization=spec.quantization,
        engine=profile(spec.engine),
        tp=spec.tp,
        pp=spec.pp,
    )
