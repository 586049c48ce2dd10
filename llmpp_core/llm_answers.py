"""What a response says: the text of a Chat Completions reply, and the numbers in it.

Replies are kept as they came and read again whenever they are needed. A number counts only if it is all there is and
lies in the task's range. Anything else is invalid: kept, counted, predicted as nan, and not asked again until it fits,
which would bias the distribution.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmpp_core.prompts import Prompt

_NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?"
# A reply that differs from these is invalid; surrounding white space does not matter.
_SINGLE = re.compile(rf"\s*({_NUMBER})\s*")
_LINE = re.compile(rf"\s*([0-9]+)\s*:\s*({_NUMBER})\s*")


class ReplyError(ValueError):
    """A body with status 200 that holds no reply; `code` is that of the error it holds instead, if any."""

    def __init__(self, reason: str, code: str = ""):
        super().__init__(reason)
        self.code = code


class Reply(NamedTuple):
    """What one response holds; token counts are None where the server gave none."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    answer_tokens: int | None


@dataclass(frozen=True)
class Answer:
    """The outcome of one request.

    Parameters
    ----------
    key : str
        Its key in cache and recordings.
    values : tuple of float
        One score per architecture asked about, higher is better; nan where there is no valid number.
    status : {"answered", "invalid", "failed"}
        "invalid" if any value is nan although the model answered, "failed" if no answer was obtained.
    reason : str
        Why it is invalid or failed, else "".
    text : str
        What the model wrote.
    prompt_tokens, answer_tokens : int or None
        As the server counted them.
    seconds : float or None
        How long the call took; None where nobody measured.
    """

    key: str
    values: tuple[float, ...]
    status: str
    reason: str = ""
    text: str = ""
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    seconds: float | None = None


def read_reply(raw: str) -> Reply:
    """Read a response body; raises ReplyError if it holds no reply, so that it must not be kept."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise ReplyError(f"the response is not JSON: {' '.join(raw[:80].split())!r}") from None
    if not isinstance(body, dict):
        raise ReplyError(f"the response is no JSON object: {raw[:80]!r}")
    if error := body.get("error"):
        message = error.get("message", error) if isinstance(error, dict) else error
        raise ReplyError(f"an error with status 200: {str(message)[:200]}", str(error.get("code") or "") if isinstance(error, dict) else "")
    try:
        choice = body["choices"][0]
        content, finish_reason = choice["message"].get("content"), choice.get("finish_reason")
        refusal = choice["message"].get("refusal")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ReplyError("the response has no choices") from None
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    text = content if isinstance(content, str) else refusal if isinstance(refusal, str) else ""
    return Reply(text, finish_reason, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_answer(prompt: Prompt, key: str, raw: str, seconds: float | None = None) -> Answer:
    """Read the numbers that a kept response gives for a prompt."""
    reply = read_reply(raw)
    try:
        values, reason = _numbers(prompt, reply)
    except ValueError as error:
        values, reason = (math.nan,) * prompt.n, str(error)
    status = "invalid" if reason else "answered"
    return Answer(key, values, status, reason, reply.text, reply.prompt_tokens, reply.answer_tokens, seconds)


def _numbers(prompt: Prompt, reply: Reply) -> tuple[tuple[float, ...], str]:
    """Return one score per architecture, and why one is nan, or raise ValueError if the reply has not the form asked for."""
    if reply.finish_reason == "content_filter":
        raise ValueError("stopped by the content filter")
    if reply.finish_reason == "length":
        raise ValueError("cut off at the token limit")
    found = _layout(prompt, reply.text)
    outside = [number for number in found if not prompt.low <= number <= prompt.high]
    reason = f"{outside[0]:g} is outside {prompt.low:g} to {prompt.high:g}" if outside else ""
    return tuple(math.nan if number in outside else prompt.sign * number for number in found), reason


def _layout(prompt: Prompt, text: str) -> list[float]:
    if prompt.form == "single":
        match = _SINGLE.fullmatch(text)
        if not match:
            raise ValueError(f"expected one number, got {text[:60]!r}")
        return [float(match[1])]
    if prompt.form == "json":
        pairs = _json_pairs(text)
    else:
        matches = [_LINE.fullmatch(line) for line in text.splitlines() if line.strip()]
        pairs = [(match[1], float(match[2])) for match in matches if match]
        if len(pairs) < len(matches):
            raise ValueError(f"expected one line 'number: score' per architecture, got {text[:60]!r}")
    if sorted(name for name, _ in pairs) != sorted(str(i + 1) for i in range(prompt.n)):
        raise ValueError(f"expected the numbers 1 to {prompt.n} once each, got {', '.join(name for name, _ in pairs)[:60] or 'none'}")
    return [value for _, value in sorted(pairs, key=lambda pair: int(pair[0]))]


def _json_pairs(text: str) -> list[tuple[str, float]]:
    try:
        # Pairs, since json keeps the last of repeated keys in silence; "NaN" and "Infinity" are no JSON.
        pairs = json.loads(text, object_pairs_hook=list, parse_int=float, parse_constant=str)
    except (ValueError, RecursionError):
        raise ValueError(f"expected a JSON object, got {text[:60]!r}") from None
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) and isinstance(pair[1], float) for pair in pairs):
        raise ValueError(f"expected a JSON object of numbers, got {text[:60]!r}")
    return pairs
