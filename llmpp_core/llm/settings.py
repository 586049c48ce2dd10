"""Which model is asked and how, on which the keys of answers depend; how fast, how patiently, and for how much money at most.

The secret of the endpoint is no setting: it is read from the environment when a request is about to be sent, and is neither stored nor
passed on. `Settings.local` is for a server of one's own; `llmpp_core.llm.local` says how each is started.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from llmpp_core.llm.prompts import Prompt

#: Part of every cache key: raise it when the meaning of a key changes.
SCHEMA_VERSION = 1
#: Ports on which local servers listen unless told otherwise.
LOCAL_SERVERS = {"vllm": 8000, "ollama": 11434, "llama-server": 8080, "lm-studio": 1234, "transformers": 8000}
# The settings that answers depend on, in the order of recordings.
_IDENTITY = ("endpoint", "model", "temperature", "reasoning_effort", "answer_tokens", "token_limit_field", "extra")
# Fields of the request that other settings, the budget or the reading of replies depend on.
_RESERVED = ("model", "messages", "temperature", "reasoning_effort", "max_tokens", "max_completion_tokens", "n", "stream")
# What each number may be: whether it must be whole, whether 0 is allowed, and the most that it may be.
_NUMBERS: dict[str, tuple[bool, bool, float]] = {
    **dict.fromkeys(("answer_tokens", "concurrency", "max_failures", "token_cap"), (True, False, math.inf)),
    **dict.fromkeys(("deadline", "requests_per_minute", "tokens_per_minute"), (False, False, math.inf)),
    **dict.fromkeys(("temperature", "backoff", "budget"), (False, True, math.inf)),
    "retries": (True, True, math.inf),
    "max_invalid": (False, True, 1.0),
}
_PORTS = {"http": 80, "https": 443}
# What chat templates put around a message, generously.
_MESSAGE_TOKENS = 10


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(-math.inf < value < math.inf)  # type: ignore[operator]


def _number(name: str, value: Any) -> float:
    """Return a number in the type that its setting has, or raise ValueError."""
    whole, zero, most = _NUMBERS[name]
    if not (_is_number(value) and (value >= 0 if zero else value > 0) and value <= most and not (whole and value % 1)):
        kind = "whole number" if whole else "number"
        expected = f"a {kind} from 0 to {most:g}" if most < math.inf else f"a {kind} of at least 0" if zero else f"a positive {kind}"
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return int(value) if whole else float(value) + 0.0  # -0.0 is 0.0.


def _canonical(extra: Mapping[str, Any]) -> Any:
    """Return JSON values in which equal numbers are written alike, or raise ValueError."""
    try:
        text = json.dumps(dict(extra), allow_nan=False, default=lambda number: number.item())  # One of NumPy's.
        return json.loads(text, parse_float=_shortest)
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"extra: expected JSON values (text, finite numbers, true, false, null, lists, objects), got others: {error}"
        ) from None


def _shortest(digits: str) -> float:
    # Whole where possible: a server may want an integer, and none minds it in place of a decimal. Those of 2**53 have no such spelling.
    number = float(digits)
    return int(number) if number % 1 == 0 and abs(number) < 2**53 else number


def _address(text: Any) -> str:
    """Return a base URL with scheme and host in lower case and without its usual port, or raise ValueError."""
    shown = str(text).split("@")[-1].split("?")[0]
    bad = ValueError(f"base_url: expected http(s)://host/path, got {shown!r}")
    try:
        url = urlsplit(str(text).strip())
        port = url.port
    except ValueError:
        raise bad from None
    if url.scheme not in _PORTS or not url.hostname or not re.fullmatch(r"[!-~]+", url.hostname + url.path):
        raise bad
    if url.username or url.password or url.query or url.fragment:
        raise ValueError(
            "base_url: expected no user name, password, query or fragment; the key is read from the environment, and addresses that "
            "need ?api-version=… have a newer form without (Azure: https://NAME.openai.azure.com/openai/v1)"
        )
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    where = host if port in (None, _PORTS[url.scheme]) else f"{host}:{port}"
    return urlunsplit(SplitResult(url.scheme, where, url.path, "", ""))


@dataclass(frozen=True)
class Price:
    """What tokens cost; raises ValueError unless prices are numbers of at least 0 and the date is one."""

    prompt: float  #: Price of a million tokens sent.
    answer: float  #: Price of a million tokens received.
    date: str  #: When it was read off the vendor's page, YYYY-MM-DD.
    currency: str = "USD"  #: Unit of the prices and of the budget.

    def __post_init__(self) -> None:
        if not all(_is_number(value) and value >= 0 for value in (self.prompt, self.answer)):
            raise ValueError(f"price: expected two numbers of at least 0, got {self.prompt!r} and {self.answer!r}")
        try:
            valid = datetime.date.fromisoformat(self.date).isoformat() == self.date
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
    """A model, how it is asked, and the limits of a run; a bad value raises ValueError that names it and what is allowed."""

    # What answers depend on, and their keys with them.
    model: str  #: Model id, as the endpoint knows it.
    base_url: str = "https://api.openai.com/v1"  #: The endpoint, without user name, password or query.
    endpoint: str | None = None  #: What stands for it in keys and recordings, where the URL says nothing, such as a local port.
    key_variable: str | None = "OPENAI_API_KEY"  #: Environment variable that holds the secret; None for a server that wants none.
    temperature: float | None = None  #: Sent if given; most models have their own default.
    reasoning_effort: str | None = None  #: Sent if given.
    answer_tokens: int = 25  #: Most tokens of an answer, reasoning included, per architecture asked about.
    token_limit_field: str = "max_tokens"  #: Or "max_completion_tokens", where a vendor wants that.
    extra: Mapping[str, Any] = field(default_factory=dict)  #: Further fields of the request, in JSON types; 1.0 is sent as 1.
    # Pace and patience.
    concurrency: int = 16  #: Requests in flight at once.
    requests_per_minute: float | None = None  #: Rate limit to keep.
    tokens_per_minute: float | None = None  #: Rate limit to keep.
    deadline: float = 120.0  #: Seconds after which one call is given up, whatever the server sends.
    retries: int = 6  #: Further calls after one that failed in a way that may pass.
    backoff: float = 1.0  #: Scale in seconds of the random delay before a retry; it doubles each time, up to a minute.
    max_failures: int = 20  #: Requests that fail in a row, retries included, before the run stops; filtered ones do not count.
    max_invalid: float = 0.5  #: Share of invalid answers, of 20 or more, above which the run stops; 1 lets it go on.
    # Money. A server on this machine needs neither price nor token cap.
    price: Price | None = None
    budget: float | None = None  #: Most to spend, in the currency of the price.
    token_cap: int | None = None  #: Most tokens, sent and received together; required where the price is unknown.

    def __post_init__(self) -> None:
        # Settings that are equal have one key, however they are spelled.
        object.__setattr__(self, "base_url", _address(self.base_url))
        if not self.model or not isinstance(self.model, str):
            raise ValueError(f"model: expected the id of a model, got {self.model!r}")
        for name in _NUMBERS:
            if (value := getattr(self, name)) is not None or type(self).__dataclass_fields__[name].default is not None:
                object.__setattr__(self, name, _number(name, value))
        for name in ("endpoint", "key_variable", "reasoning_effort", "token_limit_field"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value.strip()) and (value is not None or name == "token_limit_field"):
                raise ValueError(f"{name}: expected a text, got {value!r}")
        if self.token_limit_field in _RESERVED and not self.token_limit_field.startswith("max_"):
            raise ValueError(
                f"token_limit_field: expected the field that limits an answer, got {self.token_limit_field}, which others decide"
            )
        if self.price is not None and not isinstance(self.price, Price):
            raise ValueError(f"price: expected a Price, got {self.price!r}")
        if not isinstance(self.extra, Mapping):
            raise ValueError(f"extra: expected further fields of the request, got a {type(self.extra).__name__}")
        if taken := [name for name in self.extra if name in _RESERVED]:
            raise ValueError(f"extra: expected further fields of the request, got {taken[0]}, which other settings decide")
        object.__setattr__(self, "extra", _canonical(self.extra))

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
        """Raise ValueError unless something bounds what a run can cost, or if a budget would not, for want of a price."""
        if self.budget is not None and self.price is None:
            raise ValueError("budget: expected a price with it, by which it is counted; without one, set token_cap")
        if self.is_free or self.token_cap is not None:
            return
        if self.price is None:
            raise ValueError(f"the price of {self.model} is not given: set token_cap, or price and budget")
        if self.budget is None:
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
        given = {"temperature": self.temperature, "reasoning_effort": self.reasoning_effort, "response_format": prompt.response_format()}
        return body | {name: value for name, value in given.items() if value is not None} | dict(self.extra)

    def key(self, prompt: Prompt, sample: int = 0) -> str:
        """Return the key under which the answer to one sample of a prompt is kept: a sha256 over everything it depends on."""
        content = [SCHEMA_VERSION, self.identity()["endpoint"], self.body(prompt), sample]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@lru_cache(maxsize=256)
def _counts(text: str) -> tuple[int, int]:
    """Return how many words and numbers a text holds, and about how many tokens it makes."""
    words = re.findall(r"[^\W\d]+|\d+", text)
    pieces = sum(-(-len(word.encode()) // (3 if word[0].isdigit() else 6)) for word in words)
    return len(words), pieces + sum(not (character.isalnum() or character.isspace()) for character in text)


def fewest_tokens(prompt: Prompt) -> int:
    """Return the number of words and numbers of a prompt, which any tokenizer needs at least as many tokens for."""
    return _counts(prompt.prefix)[0] + _counts(prompt.query)[0]


def estimate_tokens(prompt: Prompt) -> int:
    """Return about how many tokens a prompt has, rather too many than too few; tokenizers differ by tens of percent."""
    return _MESSAGE_TOKENS + _counts(prompt.prefix)[1] + _counts(prompt.query)[1]
