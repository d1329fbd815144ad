"""What a server is found to be at load: its model, which of its endpoints answers, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, EngineStartError
from pytest_llminfer.worker.backends.openai.answers import Answer
from pytest_llminfer.worker.backends.openai.arguments import closest
from pytest_llminfer.worker.backends.openai.dialects import UNKNOWN, Dialect, dialect_of
from pytest_llminfer.worker.backends.openai.transport import Failure, Transport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NO_SERVER, NOT_FOUND = 0, 404
DENIED = (401, 403)
FROM_HERE_ON_ITS_OWN = 500
PROBE_TOKEN = 10
_VERSION = "/v1"
_RETRIES = 2
"""Of a probe: some servers answer a question that they do not understand as if they were broken."""
SHOWN_MODELS = 20
_PROBE = {"max_tokens": 1, "temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "seed": 0}
PROBE_SAMPLING: dict[str, Any] = {**_PROBE, "stop_token_ids": [], "ignore_eos": False}


@dataclass(frozen=True, slots=True)
class Served:
    """One model on a server.

    Attributes:
        model: Its name there.
        entry: As the server lists it; empty where it lists none.
        dialect: How that kind of server is queried.
    """

    model: str
    entry: dict[str, Any]
    dialect: Dialect


@dataclass(frozen=True, slots=True)
class Offer:
    """What a model's endpoint takes and gives.

    Attributes:
        api: ``completions`` or ``chat``.
        prompts: What a prompt is: ``token_ids``, ``text`` or ``messages``.
        gives_ids: Whether token ids come back.
        gives_logprobs: Whether log-probabilities come back, of tokens named by their ids.
        extra: Fields that request token ids; empty where the server refused them.
        scores_prompts: Whether it returns the log-probabilities of a prompt.
    """

    api: str
    prompts: str
    gives_ids: bool
    gives_logprobs: bool
    extra: Mapping[str, Any]
    scores_prompts: bool = False


def find_model(transport: Transport, *, server: str, asked: str, fallback: str, given: str = "") -> Served:
    """The model by the name ``asked``, by ``fallback`` (the session's model), or the only one that the server lists.

    given: the name that the server was started with, which is used whatever the server lists.

    Raises:
        BadInputError: no such model, or several and none was named; or the address lacks its ``/v1``.
        EngineStartError: the server does not answer, or refuses the key.
    """
    listing = transport.get("/models")
    if isinstance(listing, Failure):
        if listing.status in DENIED or listing.status == NO_SERVER or listing.status >= FROM_HERE_ON_ITS_OWN:
            raise _unusable(listing, server, has_key=transport.has_key)
        if listing.status == NOT_FOUND and _answers_below(transport):
            raise BadInputError(f"{server} answers under {_VERSION} alone: --engine=openai@{transport.address}{_VERSION}")
        if asked or fallback:
            return Served(asked or fallback, {}, UNKNOWN)
        raise BadInputError(f'{server} lists no models ({listing}): name one, --engine-args=\'{{"model": "..."}}\'')
    entries = {entry["id"]: entry for entry in _listed(listing)}
    if given:
        entry = entries.get(given) or next(iter(entries.values()), {})
        return Served(given, entry, dialect_of(str(entry.get("owned_by", ""))))
    name = asked or (fallback if fallback in entries else "")
    if not name and len(entries) == 1:
        (name,) = entries
    if name and (name in entries or not entries):
        entry = entries.get(name, {})
        return Served(name, entry, dialect_of(str(entry.get("owned_by", ""))))
    shown = ", ".join(sorted(entries)[:SHOWN_MODELS]) + (f" and {len(entries) - SHOWN_MODELS} more" * (len(entries) > SHOWN_MODELS))
    if name:
        raise BadInputError(f"{server} has no model {name!r}; it has: {shown}.{closest(name, entries)}")
    raise BadInputError(f'{server} has {len(entries)} models; name one, --engine-args=\'{{"model": "..."}}\': {shown or "none"}')


def _answers_below(transport: Transport) -> bool:
    """Whether there is a list of models one step further down, which may want a key."""
    listing = transport.get(f"{transport.address}{_VERSION}/models", max_retries=0)
    return listing.status in DENIED if isinstance(listing, Failure) else bool(_listed(listing))


def _listed(listing: Any) -> list[dict[str, Any]]:
    entries = listing.get("data", []) if isinstance(listing, dict) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def find_offer(transport: Transport, served: Served, *, server: str, api: str, has_tokenizer: bool) -> Offer:
    """Ask for one token, from the richest question to the plainest, and see what comes back.

    Without ``api``: completions over token ids where the server takes them, otherwise chat. ``completions`` where it takes
    none means text, for which the model's tokenizer must be here.

    Raises:
        BadInputError: the endpoint that was asked for does not answer.
        EngineStartError: none does.
    """
    questions: list[tuple[str, str]] = []
    if api != "chat" and served.dialect.takes_ids:
        questions.append(("completions", "token_ids"))
    if api == "completions" and has_tokenizer:
        questions.append(("completions", "text"))
    if api != "completions":
        questions.append(("chat", "messages"))
    refusals = []
    for endpoint, prompts in questions:
        found = _try(transport, served, endpoint, prompts)
        if isinstance(found, Offer):
            return found
        if found.status in DENIED or found.status == NO_SERVER or found.status >= FROM_HERE_ON_ITS_OWN:
            last = (endpoint, prompts) == questions[-1]
            if found.status in DENIED or last:
                raise _unusable(found, server, has_key=transport.has_key)
        refusals.append(f"{endpoint} with {prompts.replace('_', ' ')}: {found}")
    hint = (
        "" if has_tokenizer or api != "completions" else "; to send text, give the model's folder with its tokenizer.json: --model"
    )
    error = BadInputError if api else EngineStartError
    raise error(f"{server} answers no probe of {served.model!r} ({'; '.join(refusals)}){hint}")


def _try(transport: Transport, served: Served, api: str, prompts: str) -> Offer | Failure:
    asking = Asking(api, prompts, served)
    first: Failure | None = None
    for extra in dict.fromkeys((True, False)):
        for logprobs in (1, 0):
            body = asking.body(_probe_prompt(prompts), PROBE_SAMPLING, logprobs, served.dialect.wants_ids if extra else {})
            reply = transport.run(transport.post(asking.path, body, max_retries=_RETRIES))
            if isinstance(reply, Failure):
                first = first or reply
                if reply.status in (NO_SERVER, NOT_FOUND, *DENIED):
                    return reply
                continue
            answer = Answer()
            answer.add(reply)
            if prompts == "token_ids" and answer.usage.get("prompt_tokens", 1) != 1:
                return Failure("NotUnderstood", 400, "a prompt of one token id was read as text")
            return Offer(
                api=api,
                prompts=prompts,
                gives_ids=answer.token_ids is not None,
                gives_logprobs=bool(answer.top(logprobs)),
                extra=served.dialect.wants_ids if extra else {},
                scores_prompts=served.dialect.scores_prompts and prompts == "token_ids",
            )
    return first or Failure("NotAsked", NOT_FOUND, "nothing was asked")


def _probe_prompt(prompts: str) -> Any:
    if prompts == "token_ids":
        return [PROBE_TOKEN]
    return "1" if prompts == "text" else [{"role": "user", "content": "1"}]


@dataclass(frozen=True, slots=True)
class Asking:
    """How the body of a request is written for one endpoint.

    Attributes:
        api: ``completions`` or ``chat``.
        prompts: What a prompt is: ``token_ids``, ``text`` or ``messages``.
        served: The model and its kind of server.
    """

    api: str
    prompts: str
    served: Served

    @property
    def path(self) -> str:
        """The endpoint's path below the base address."""
        return "/chat/completions" if self.api == "chat" else "/completions"

    def body(self, prompt: Any, sampling: Mapping[str, Any], logprobs: int, extra: Mapping[str, Any]) -> dict[str, Any]:
        """One request; ``logprobs`` is the number of most likely tokens a step."""
        body = {"model": self.served.model, **self.served.dialect.fields(sampling), **extra}
        if self.api == "chat":
            body["messages"] = prompt
            if logprobs:
                body |= {"logprobs": True, "top_logprobs": logprobs}
        else:
            body["prompt"] = prompt
            if logprobs:
                body["logprobs"] = logprobs
        return body


def _unusable(failure: Failure, server: str, *, has_key: bool) -> EngineStartError:
    if failure.status in DENIED and not has_key:
        return EngineStartError(f"{server} needs an API key ({failure}): set OPENAI_API_KEY, in the environment or in .env")
    if failure.status in DENIED:
        return EngineStartError(f"{server} refuses the API key ({failure}); set OPENAI_API_KEY, in the environment or in .env")
    return EngineStartError(f"{server} does not answer ({failure}); look whether the server runs and the address is right")


def capabilities(offer: Offer) -> frozenset[str]:
    """What can be asked of a server with this offer."""
    own: Sequence[str] = ("generate", "generate:messages") if offer.prompts == "messages" else ("generate",)
    scores = ("score_top",) if offer.scores_prompts else ()
    return frozenset({*own, "settings", "talk", *scores, *(("generate:logprobs",) if offer.gives_logprobs else ())})
