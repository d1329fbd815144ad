"""Probes and faults for a live model of vLLM, called in its worker."""

from typing import Any


def scale(model: Any, *, name: Any, factor: Any) -> Any:
    model.get_parameter(name).data.mul_(factor)
    return name


def row(model: Any, *, name: Any, number: Any) -> Any:
    return model.get_parameter(name).data[number].float().numpy()


def fails(_model: Any) -> None:
    raise KeyError("no such layer")


def lose_cached_values(model: Any, *, on: Any) -> list[Any]:
    # Before prompts go on from a cached prefix, the values of 16 tokens of each block are lost in layer 1.
    attention = model.model.layers[1].self_attn.attn

    def damage(_module: Any, args: Any, kwargs: Any) -> None:
        positions = kwargs["positions"] if "positions" in kwargs else args[1]
        if len(positions) > 64 and int(positions.min()) >= 128:
            attention.kv_cache[..., :16, 64:] = 0

    model.damage = model.register_forward_pre_hook(damage, with_kwargs=True) if on else model.damage.remove()
    return list(attention.kv_cache.shape)
