"""A model of any configuration with random weights whose predictions are peaked and depend on their context.

An ordinary initialisation gives nearly uniform predictions which no fault of the cache moves. Here every matrix keeps the size
of what passes through it, attention picks few tokens, biases and norms differ from their neutral values, and the last matrix is
scaled until the entropy is 1.85 nats (docs/methods.md#fp32-structure).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.worker.backends.transformers.loading import TORCH_DTYPES, model_class

if TYPE_CHECKING:
    from collections.abc import Mapping

ENTROPY = 1.85
"""Nats, of the mean prediction (docs/methods.md#fp32-structure)."""
_GAIN = 1.25
"""Of every matrix: attention scores then have a standard deviation of about 1.6, so that few tokens get most of the weight."""
_SPREAD = 0.25
"""Standard deviation of biases, and of norms around their neutral value."""
_PROBED = 64
"""Tokens whose mean entropy is set."""
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_NOT_OF_THE_MODEL = ("architectures", "auto_map", "dtype", "quantization_config", "torch_dtype", "transformers_version", *_SPECIAL)


@dataclass(slots=True)
class RandomModels:
    """Keeps the last model made, and returns it for an equal configuration, dtype and seed.

    Attributes:
        key: JSON of what the model was made from; empty while there is none.
        model: The model in evaluation mode; None while there is none.
    """

    key: str = ""
    model: Any = None

    def get(self, config: Mapping[str, Any], dtype: str, seed: int, *, device: torch.device, attention: str) -> Any:
        """The model of ``config``, the plain content of a config.json, in evaluation mode."""
        key = json.dumps([config, dtype, seed, str(device), attention], sort_keys=True)
        if key != self.key:
            self.key, self.model = "", None
            self.model = make(config, dtype, seed, device=device, attention=attention)
            self.key = key
        return self.model


def make(config: Mapping[str, Any], dtype: str, seed: int, *, device: torch.device, attention: str) -> Any:
    """A model whose weights depend on configuration and seed alone: another dtype rounds the same numbers.

    Embeddings are never tied: the last matrix alone sets the entropy.

    Raises:
        BadInputError: the configuration is of no causal language model that this transformers knows, or of none that can be built.
    """
    if (dtype or "fp32") not in TORCH_DTYPES:
        raise BadInputError(f"a random model has one of the dtypes {', '.join(TORCH_DTYPES)}, not {dtype!r}")
    parsed = _read(config)
    chosen = model_class(parsed)
    # What has no fused attention is computed by the plain one, as transformers chooses it where nothing is asked for.
    parsed._attn_implementation = attention if attention != "sdpa" or chosen._supports_sdpa else "eager"  # noqa: SLF001
    generator = torch.Generator().manual_seed(seed)
    try:
        model = chosen(parsed).float().eval()
        for parameter in model.parameters():
            parameter.requires_grad_(requires_grad=False)
        _draw(model, generator)
        probe = torch.randint(parsed.get_text_config().vocab_size, (1, _PROBED), generator=generator)
        _level_embeddings(model, probe)
        _sharpen(model, probe)
    except (ValueError, TypeError, RuntimeError, AttributeError, AssertionError, IndexError) as error:
        raise BadInputError(f"no working {chosen.__name__} can be made of this configuration: {error}") from error
    return model.to(device=device, dtype=TORCH_DTYPES[dtype or "fp32"])


def _read(config: Mapping[str, Any]) -> Any:
    fields = {name: value for name, value in config.items() if name not in {*_NOT_OF_THE_MODEL, "tie_word_embeddings"}}
    model_type = fields.pop("model_type", None)
    if model_type not in transformers.CONFIG_MAPPING:
        raise BadInputError(f"transformers {transformers.__version__} has no model_type {model_type!r}")
    layers = fields.get("num_hidden_layers")
    if layers and isinstance(fields.get("layer_types"), (list, tuple)):
        fields["layer_types"] = list(fields["layer_types"])[:layers]
    try:
        parsed = transformers.AutoConfig.for_model(model_type, **fields, **dict.fromkeys(_SPECIAL), tie_word_embeddings=False)
    except Exception as error:
        raise BadInputError(f"transformers cannot read this configuration of model_type {model_type!r}: {error}") from error
    if type(parsed) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInputError(f"transformers {transformers.__version__} has no causal language model of type {model_type!r}")
    return parsed


def _draw(model: Any, generator: torch.Generator) -> None:
    """Matrices by what they take in; vectors around what they were made with: 0 of a bias, 1 or 0 of a norm."""
    inputs = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.dim() > 1:
            # transformers' Conv1D, the linear layer of GPT-2, keeps its weight transposed; an embedding takes in one of its rows.
            embedding = isinstance(module, torch.nn.Embedding)
            inputs[weight] = 1 if embedding else weight.shape[0] if type(module).__name__ == "Conv1D" else weight[0].numel()
    for parameter in model.parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        if parameter.dim() > 1:
            taken = inputs.get(parameter, parameter.shape[-1])
            parameter.copy_(noise * (1.0 if taken == 1 else _GAIN / taken**0.5))
        else:
            parameter.add_(noise * _SPREAD)


def _level_embeddings(model: Any, probe: torch.Tensor) -> None:
    """What the first layer takes in gets the size 1, whatever the model multiplies its embeddings with."""
    with torch.inference_mode():
        taken = model(input_ids=probe, use_cache=False, output_hidden_states=True).hidden_states[0]
        size = float(taken.square().mean().sqrt())
    embeddings = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    for weight in embeddings:
        weight.div_(size)


def _sharpen(model: Any, probe: torch.Tensor) -> None:
    """Scale the last matrix until the mean entropy is ``ENTROPY``; logits grow with it in proportion but for a soft cap."""
    with torch.inference_mode():
        logits = model(input_ids=probe, use_cache=False).logits.double()
    low, high = 2.0**-10, 2.0**10
    for _ in range(40):
        middle = (low * high) ** 0.5
        logprobs = (logits * middle).log_softmax(dim=-1)
        entropy = float(-(logprobs.exp() * logprobs).sum(dim=-1).mean())
        low, high = (middle, high) if entropy > ENTROPY else (low, middle)
    model.get_output_embeddings().weight.mul_(low)
