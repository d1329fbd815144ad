"""Faults that a real model is given in its worker: probes that patch what is loaded."""

from __future__ import annotations

from typing import Any


def _attention(model: Any, layer: int) -> Any:
    return model.model.layers[layer].self_attn


def lose_a_block(model: Any) -> None:
    """Every decode step forgets what one 16-token block of the prompt held in layer 1."""
    attention = _attention(model, 1)
    forward = attention.forward

    def faulty(*args: Any, past_key_values: None = None, **kwargs: Any) -> Any:
        if past_key_values is not None and past_key_values.get_seq_length() > 0 and len(past_key_values.layers) > 1:
            values = past_key_values.layers[1].values
            if values is not None:
                values[:, :, 16:32] = 0
        return forward(*args, past_key_values=past_key_values, **kwargs)

    attention.forward = faulty


def shift_positions(model: Any) -> None:
    """Every decode step rotates by one position too many."""
    rotary = model.model.rotary_emb
    forward = rotary.forward

    def faulty(hidden: Any, position_ids: Any) -> Any:
        return forward(hidden, position_ids + (1 if hidden.shape[1] == 1 else 0))

    rotary.forward = faulty


def keep_a_layer_in_float32(model: Any) -> None:
    """One linear of layer 2 is stored in fp32 without a word."""
    linear = model.model.layers[2].mlp.down_proj
    linear.weight.data = linear.weight.data.float()


def untie_nothing_but_copy_the_embedding(model: Any) -> None:
    """The embedding is held in fp32: twice its bytes."""
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.float()


def leak(model: Any) -> None:
    """Every forward pass leaves a kilobyte behind."""
    import torch

    kept = model._kept = []
    model.register_forward_hook(lambda *_: kept.append(torch.ones(256)))


def unmask_padding(model: Any) -> None:
    """Attention sees the left padding of a batch as if it were text."""
    forward = model.model.forward

    def faulty(*args: Any, attention_mask: None = None, **kwargs: Any) -> Any:
        import torch

        return forward(*args, attention_mask=None if attention_mask is None else torch.ones_like(attention_mask), **kwargs)

    model.model.forward = faulty


def sleep(model: Any) -> None:
    """Every forward pass takes 10 ms more."""
    import time

    model.register_forward_hook(lambda *_: time.sleep(0.01))


def round_weights(model: Any) -> None:
    """The linears of attention keep five levels a row, two of them either way."""
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = getattr(layer.self_attn, name).weight.data
            step = weight.abs().amax(dim=1, keepdim=True) / 2
            weight.copy_((weight / step).round() * step)


def hog(model: Any) -> None:
    """Every forward pass needs a quarter of a gigabyte for a moment."""
    import torch

    model.register_forward_hook(lambda *_: torch.ones(2**26).sum() and None)


def leave_a_layer_unquantized(model: Any) -> None:
    """One linear of layer 2 stays in bf16 without a word, and one of layer 1 is packed without double quantization."""
    import bitsandbytes
    import torch

    packed = model.model.layers[2].mlp.down_proj
    values = bitsandbytes.functional.dequantize_4bit(packed.weight.data, packed.weight.quant_state).to(torch.bfloat16)
    plain = torch.nn.Linear(packed.in_features, packed.out_features, bias=False, dtype=torch.bfloat16)
    plain.weight = torch.nn.Parameter(values, requires_grad=False)
    model.model.layers[2].mlp.down_proj = plain
    single = model.model.layers[1].mlp.up_proj
    values = bitsandbytes.functional.dequantize_4bit(single.weight.data, single.weight.quant_state)
    weight = bitsandbytes.nn.Params4bit(values, requires_grad=False, compress_statistics=False, quant_type="nf4")
    single.weight = weight.to(model.device)


def untie(model: Any) -> None:
    """The output matrix is a copy of the embedding that it is tied to."""
    import torch

    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())


def penalise(model: Any) -> None:
    """``generate`` applies a repetition penalty of 1.05, as from a model's generation defaults; what is reported stays raw."""
    generate = model.generate

    def faulty(*args: Any, generation_config: Any, **kwargs: Any) -> Any:
        generation_config.repetition_penalty = 1.05
        return generate(*args, generation_config=generation_config, **kwargs)

    model.generate = faulty


def penalise_what_is_reported(model: Any) -> None:
    """The same penalty in the logits themselves, as of an engine that reports its distribution after penalties."""
    import torch

    def remember(_: Any, args: Any, kwargs: Any) -> None:
        fresh = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        model._seen = fresh if fresh.shape[1] > 1 else torch.cat([model._seen, fresh], dim=1)

    def penalised(_module: Any, _inputs: Any, output: Any) -> Any:
        last = output.logits[:, -1]
        seen = last.gather(1, model._seen)
        last.scatter_(1, model._seen, torch.where(seen > 0, seen / 1.05, seen * 1.05))
        return output

    model.register_forward_pre_hook(remember, with_kwargs=True)
    model.register_forward_hook(penalised)
