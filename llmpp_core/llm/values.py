"""What the values of settings may be, and the one way in which each is written, on which keys depend."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

_PORTS = {"http": 80, "https": 443}
#: Fields of the request that have a setting of their own, on which keys, the budget and the reading of replies depend.
RESERVED = ("model", "messages", "temperature", "reasoning_effort", "max_tokens", "max_completion_tokens", "n", "stream")
#: What each number may be: whether it must be whole, whether 0 is allowed, and the most that it may be.
NUMBERS: dict[str, tuple[bool, bool, float]] = {
    **dict.fromkeys(("answer_tokens", "concurrency", "max_failures", "token_cap"), (True, False, math.inf)),
    **dict.fromkeys(("deadline", "requests_per_minute", "tokens_per_minute"), (False, False, math.inf)),
    **dict.fromkeys(("temperature", "backoff", "budget"), (False, True, math.inf)),
    "retries": (True, True, math.inf),
    "max_invalid": (False, True, 1.0),
}


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(-math.inf < value < math.inf)  # type: ignore[operator]


def number(name: str, value: Any) -> float:
    """Return a number in the type that its setting has, or raise ValueError."""
    whole, zero, most = NUMBERS[name]
    if not (is_number(value) and (value >= 0 if zero else value > 0) and value <= most and not (whole and value % 1)):
        kind = "whole number" if whole else "number"
        expected = f"a {kind} from 0 to {most:g}" if most < math.inf else f"a {kind} of at least 0" if zero else f"a positive {kind}"
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return int(value) if whole else float(value) + 0.0  # -0.0 is 0.0.


def canonical(value: Any) -> Any:
    """Return a JSON value in which equal numbers are written alike, or raise ValueError."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if is_number(value):
        # Whole where possible: a server may want an integer, and none minds it in place of a decimal. Those of 2**53 have no such spelling.
        return int(value) if value % 1 == 0 and abs(value) < 2**53 else float(value)
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: canonical(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(entry) for entry in value]
    got = repr(value) if isinstance(value, Real) else f"a {type(value).__name__}"
    raise ValueError(f"extra: expected JSON values (text, finite numbers, true, false, null, lists, objects named by text), got {got}")


def address(text: Any) -> str:
    """Return a base URL with scheme and host in lower case and without its usual port, or raise ValueError."""
    shown = str(text).split("@")[-1].split("?")[0]
    try:
        url = urlsplit(str(text).strip())
        port = url.port
    except ValueError:
        raise ValueError(f"base_url: expected http(s)://host/path, got {shown!r}") from None
    if url.scheme not in _PORTS or not url.hostname or not re.fullmatch(r"[!-~]+", url.hostname + url.path):
        raise ValueError(f"base_url: expected http(s)://host/path, got {shown!r}")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError(
            "base_url: expected no user name, password, query or fragment; the key is read from the environment, and addresses that "
            "need ?api-version=… have a newer form without (Azure: https://NAME.openai.azure.com/openai/v1)"
        )
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    where = host if port in (None, _PORTS[url.scheme]) else f"{host}:{port}"
    return urlunsplit(SplitResult(url.scheme, where, url.path, "", ""))
