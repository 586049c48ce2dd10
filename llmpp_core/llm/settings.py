"""Which model is asked, how, how fast, and for how much money at most.

`Settings` is everything a run depends on except the key, which is read from the environment when a request is about to
be sent and is neither stored nor passed on. `Settings.local` is for a server of one's own; `llm_local` says how each is started.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from llmpp_core.llm.prompts import Prompt
from llmpp_core.llm.values import NUMBERS, RESERVED, address, canonical, is_number, number

#: Part of every cache key: raise it when the meaning of a key changes.
SCHEMA_VERSION = 1
# The settings that answers depend on.
_IDENTITY = ("endpoint", "model", "temperature", "reasoning_effort", "answer_tokens", "token_limit_field", "extra")
#: Ports on which local servers listen unless told otherwise.
LOCAL_SERVERS = {"vllm": 8000, "ollama": 11434, "llama-server": 8080, "lm-studio": 1234, "transformers": 8000}


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, as read off the vendor's page on a given date.

    Parameters
    ----------
    prompt, answer : float
        Price of a million tokens sent and received.
    date : str
        When the price was looked up, YYYY-MM-DD.
    currency : str
        Unit of the prices and of the budget.
    """

    prompt: float
    answer: float
    date: str
    currency: str = "USD"

    def __post_init__(self) -> None:
        if not all(is_number(value) and value >= 0 for value in (self.prompt, self.answer)):
            raise ValueError(f"price: expected two numbers of at least 0, got {self.prompt!r} and {self.answer!r}")
        try:
            valid = bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", self.date)) and bool(datetime.date.fromisoformat(self.date))
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise ValueError(f"price date: expected YYYY-MM-DD, got {self.date!r}")

    def of(self, prompt_tokens: float, answer_tokens: float) -> float:
        """Return the cost of some tokens."""
        return (prompt_tokens * self.prompt + answer_tokens * self.answer) / 1e6


#: The price of a server of one's own.
FREE = Price(0.0, 0.0, "1970-01-01")


@dataclass(frozen=True)
class Settings:
    """A model, how it is asked, and the limits of a run.

    Parameters
    ----------
    model : str
        Model id, as the endpoint knows it.
    base_url : str
        The endpoint, without user name, password or query. One on this machine needs neither price nor token cap.
    endpoint : str, optional
        Name that stands for the endpoint in cache keys and recordings, where the URL says nothing, such as a local port.
    key_variable : str or None
        Environment variable that holds the key; None for a server that wants none.
    temperature, reasoning_effort : optional
        Sent only if given; most models have their own defaults.
    answer_tokens : int
        Most tokens of an answer, per architecture asked about; reasoning models spend their thoughts from it.
    token_limit_field : str
        "max_tokens", or "max_completion_tokens" where a vendor wants that.
    extra : mapping
        Further fields of the request body, in JSON types; whole numbers are sent as such, 1.0 as 1.
    concurrency : int
        Requests in flight at once.
    requests_per_minute, tokens_per_minute : float, optional
        Rate limits to keep.
    deadline : float
        Seconds after which one call is given up, whatever the server sends.
    retries : int
        Further calls after one that failed in a way that may pass.
    backoff : float
        Scale in seconds of the random delay before a retry; it doubles each time, up to a minute.
    max_failures : int
        Requests that fail in a row, retries included, before the run stops; those that a content filter refuses do not count.
    max_invalid : float
        Share of invalid answers, of 20 or more to the prompts at hand, above which the run stops; 1 lets it go on whatever is answered.
    price, budget : optional
        Price of tokens, and the most to spend, in its currency.
    token_cap : int, optional
        Most tokens, sent and received together; required where the price is unknown.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    endpoint: str | None = None
    key_variable: str | None = "OPENAI_API_KEY"
    temperature: float | None = None
    reasoning_effort: str | None = None
    answer_tokens: int = 25
    token_limit_field: str = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    deadline: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    max_failures: int = 20
    max_invalid: float = 0.5
    price: Price | None = None
    budget: float | None = None
    token_cap: int | None = None

    def __post_init__(self) -> None:
        # Settings that are equal have one key, however they are spelled.
        object.__setattr__(self, "base_url", address(self.base_url))
        if not self.model or not isinstance(self.model, str):
            raise ValueError(f"model: expected the id of a model, got {self.model!r}")
        for name in NUMBERS:
            if (value := getattr(self, name)) is not None or type(self).__dataclass_fields__[name].default is not None:
                object.__setattr__(self, name, number(name, value))
        if not isinstance(self.extra, Mapping) or (taken := [name for name in self.extra if name in RESERVED]):
            got = f"{taken[0]}, which other settings decide" if isinstance(self.extra, Mapping) else f"a {type(self.extra).__name__}"
            raise ValueError(f"extra: expected further fields of the request, got {got}")
        object.__setattr__(self, "extra", canonical(self.extra))

    @classmethod
    def local(cls, server: str, model: str, **changes: Any) -> Settings:
        """Return the settings for a local server of `LOCAL_SERVERS` on its usual port."""
        if server not in LOCAL_SERVERS:
            raise ValueError(f"unknown local server {server!r}; allowed are {', '.join(LOCAL_SERVERS)}")
        url = f"http://127.0.0.1:{LOCAL_SERVERS[server]}/v1"
        return cls(model, **{"base_url": url, "endpoint": server, "key_variable": None, "price": FREE} | changes)

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint is on this machine, where no proxy of the environment applies."""
        host = (urlsplit(self.base_url).hostname or "").rstrip(".")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host == "localhost"
        # 0.0.0.0 is what servers print that listen on all addresses; asked for, it is this machine.
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback or address.is_unspecified

    @property
    def is_free(self) -> bool:
        """Whether tokens cost nothing: their price is 0, or nobody gave one for a server on this machine."""
        return self.is_loopback if self.price is None else self.price.of(1, 1) == 0

    def require_limit(self) -> None:
        """Raise ValueError unless something bounds what a run can cost."""
        if self.is_free:
            return
        if self.price is None and self.token_cap is None:
            raise ValueError(f"the price of {self.model} is not given: set token_cap, or price and budget")
        if self.price is not None and self.budget is None and self.token_cap is None:
            raise ValueError(f"{self.model} costs money: set budget (in {self.price.currency}) or token_cap")

    def identity(self) -> dict[str, Any]:
        """Return what the answers depend on besides the prompts, in JSON types; recordings keep it."""
        values = {name: getattr(self, name) for name in _IDENTITY}
        return values | {"endpoint": self.endpoint or self.base_url.rstrip("/"), "extra": dict(self.extra)}

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> Settings:
        """Return settings whose `identity` is the given one, for reading recordings."""
        if not isinstance(identity, Mapping) or set(identity) != set(_IDENTITY):
            raise ValueError(f"settings of a recording: expected exactly {', '.join(_IDENTITY)}; got {str(identity)[:80]!r}")
        return cls(**identity)

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the Chat Completions request that asks one prompt."""
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": prompt.text}]}
        body[self.token_limit_field] = self.answer_tokens * prompt.n
        for name in ("temperature", "reasoning_effort"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        if (response_format := prompt.response_format()) is not None:
            body["response_format"] = response_format
        return body | dict(self.extra)

    def key(self, prompt: Prompt, sample: int = 0) -> str:
        """Return the key under which the answer to one sample of a prompt is kept: a sha256 over everything it depends on."""
        content = [SCHEMA_VERSION, self.identity()["endpoint"], self.body(prompt), sample]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# What chat templates put around a message, generously.
_MESSAGE_TOKENS = 10


@lru_cache(maxsize=256)
def _counts(text: str) -> tuple[int, int]:
    """Return how many words and numbers a text holds, and about how many tokens it makes."""
    words = re.findall(r"[^\W\d]+|\d+", text)
    pieces = sum(-(-len(word.encode()) // (3 if word[0].isdigit() else 6)) for word in words)
    symbols = sum(not (character.isalnum() or character.isspace()) for character in text)
    return len(words), pieces + symbols


def fewest_tokens(prompt: Prompt) -> int:
    """Return the number of words and numbers of a prompt, which any tokenizer needs at least as many tokens for."""
    return _counts(prompt.prefix)[0] + _counts(prompt.query)[0]


def estimate_tokens(prompt: Prompt) -> int:
    """Return about how many tokens a prompt has, rather too many than too few; tokenizers differ by tens of percent."""
    return _MESSAGE_TOKENS + _counts(prompt.prefix)[1] + _counts(prompt.query)[1]
