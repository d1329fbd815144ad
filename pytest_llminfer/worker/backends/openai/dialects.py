"""What servers understand beyond OpenAI's own fields, recognised by ``owned_by`` in their list of models.

Servers that run engines read defaults for these fields from the model's generation_config, so there the neutral values are
sent too; a server that is not known is sent only what differs from neutral, because some refuse fields that they do not know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server is queried.

    Attributes:
        name: What messages call it.
        names: Our sampling fields to the server's names for them; a field that is missing cannot be requested.
        neutral: Further fields of the server that affect the choice of tokens, with the values that switch them off.
        always: Whether neutral values are sent too.
        wants_ids: Fields that request token ids beside text; empty where the server has none.
        all_tokens: The server's value of top_k that keeps all tokens.
        takes_ids: Whether a prompt of token ids is worth a try.
        streams_chat_ids: Whether a streamed chat may request token ids too; SGLang refuses it.
        stops_with_eos: Whether ``ignore_eos`` also disables ``stop_token_ids``, as in SGLang.
        scores_prompts: Whether a completion may request ``prompt_logprobs``.
    """

    name: str
    names: Mapping[str, str]
    neutral: Mapping[str, Any] = field(default_factory=dict)
    always: bool = True
    wants_ids: Mapping[str, Any] = field(default_factory=dict)
    all_tokens: int = -1
    takes_ids: bool = True
    streams_chat_ids: bool = False
    stops_with_eos: bool = False
    scores_prompts: bool = False

    def fields(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request for this sampling, without prompt and model.

        Raises:
            UnsupportedError: the server has no word for a field that is not neutral, or ignores it beside another one.
        """
        if self.stops_with_eos and sampling["ignore_eos"] and sampling["stop_token_ids"]:
            raise UnsupportedError(
                f"a server of the kind {self.name!r} ignores stop_token_ids where ignore_eos is asked for",
                "ask for one of the two, or use another server",
            )
        body: dict[str, Any] = {
            "max_tokens": sampling["max_tokens"],
            "temperature": sampling["temperature"],
            "top_p": sampling["top_p"],
            "seed": sampling["seed"],
            **self.neutral,
            **({"stop": list(sampling["stop"])} if sampling.get("stop") else {}),
        }
        for name, neutral in (("top_k", -1), ("repetition_penalty", 1.0), ("ignore_eos", False), ("stop_token_ids", [])):
            value = sampling[name] if name != "stop_token_ids" else list(sampling[name])
            if name in self.names:
                if self.always or value != neutral:
                    body[self.names[name]] = self.all_tokens if (name, value) == ("top_k", -1) else value
            elif value != neutral:
                if name == "ignore_eos" and "min_tokens" in self.names:
                    body[self.names["min_tokens"]] = sampling["max_tokens"]
                    continue
                raise UnsupportedError(
                    f"a server of the kind {self.name!r} cannot be asked for {name}={value}",
                    f"leave {name} as it is, or use a server that knows it",
                )
        return body


_SAME = {name: name for name in ("top_k", "repetition_penalty", "ignore_eos", "stop_token_ids")}
_IDS = {"return_token_ids": True}
_VLLM = {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_LLAMA = {"top_k": "top_k", "repetition_penalty": "repeat_penalty"}

UNKNOWN = Dialect("unknown", _SAME, always=False, wants_ids=_IDS)
DIALECTS = {
    "vllm": Dialect(
        "vllm",
        _SAME,
        _VLLM,
        wants_ids={**_IDS, "return_tokens_as_token_ids": True},
        streams_chat_ids=True,
        scores_prompts=True,
    ),
    "sglang": Dialect("sglang", _SAME, {"min_p": 0.0}, wants_ids=_IDS, stops_with_eos=True),
    "simulated": Dialect("simulated", _SAME, wants_ids={**_IDS, "return_tokens_as_token_ids": True}, streams_chat_ids=True),
    # The server of llama.cpp itself, and that of llama-cpp-python, which calls its owner "me".
    "llamacpp": Dialect("llamacpp", {**_LLAMA, "ignore_eos": "ignore_eos"}, {"min_p": 0.0}, all_tokens=0),
    "me": Dialect("llama-cpp-python", {**_LLAMA, "min_tokens": "min_tokens"}, {"min_p": 0.0}, all_tokens=0, takes_ids=False),
}
"""``owned_by`` to how such a server is asked."""


def dialect_of(owned_by: str) -> Dialect:
    """The dialect of a server by what its models say of their owner."""
    return DIALECTS.get(owned_by, UNKNOWN)
