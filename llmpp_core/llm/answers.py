"""What a response says: the text of a Chat Completions reply, and the numbers in it.

Replies are kept as they came and read again whenever they are needed, in two ways (see `llm_grammar`): as asked, and tolerantly.
Predictions use the tolerant reading, and tables count what is invalid under either. A number counts only if it lies in the task's
range. Anything else is invalid: kept, counted, predicted as nan, and not asked again until it fits, which would bias the
distribution.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmpp_core.llm.grammar import ADVICE, as_asked, tolerant
from llmpp_core.llm.prompts import Prompt

# What servers say of a reply that they could not finish: gateways, vLLM and SGLang, Ollama, DeepSeek, GLM.
_SERVER_FAILED = {"error", "abort", "aborted", "load", "unload", "cancelled", "canceled", "failed", "timeout"}
_SERVER_FAILED |= {"network_error", "server_error", "insufficient_system_resource"}


class ReplyError(ValueError):
    """A body with status 200 that holds no reply; `code` is that of the error it holds instead, if any."""

    def __init__(self, reason: str, code: str = ""):
        super().__init__(reason)
        self.code = code


class ServerFailed(ReplyError):
    """A reply whose choice says that the server failed while it answered."""


class Reply(NamedTuple):
    """What one response holds.

    Token counts are None where the server gave none. `in_parts` says that the content was a list of parts, whose texts are lines
    of `text`; `has_reasoning`, that there is reasoning beside it.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    answer_tokens: int | None
    in_parts: bool = False
    has_reasoning: bool = False

    @property
    def is_exhausted(self) -> bool:
        """Whether reasoning took all tokens that were allowed. Not to be kept: the model would answer if it had more."""
        return self.finish_reason == "length" and not self.text.strip()


@dataclass(frozen=True)
class Answer:
    """The outcome of one request.

    Parameters
    ----------
    key : str
        Its key in cache and recordings.
    values : tuple of float
        One score per architecture asked about, higher is better, by the tolerant reading; nan where there is no valid number.
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
    as_asked : tuple of float
        `values` if only replies in exactly the form asked for counted; the same as `values` by default.
    """

    key: str
    values: tuple[float, ...]
    status: str
    reason: str = ""
    text: str = ""
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    seconds: float | None = None
    as_asked: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "as_asked", self.as_asked or self.values)


def read_reply(raw: str) -> Reply:
    """Read a response body.

    Raises
    ------
    ReplyError
        If it holds no reply, or says that the server failed while it answered, so that it must not be kept.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise ReplyError(f"the response is not JSON: {' '.join(raw[:80].split())!r}") from None
    if not isinstance(body, dict):
        raise ReplyError(f"the response is no JSON object: {raw[:80]!r}")
    if error := body.get("error"):
        raise ReplyError(*_read_error(error, "an error with status 200"))
    try:
        choice = body["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ReplyError("the response has no choices") from None
    if error := choice.get("error"):
        raise ServerFailed(*_read_error(error, "an error inside the reply"))
    if isinstance(finish_reason, str) and finish_reason.lower() in _SERVER_FAILED:
        raise ServerFailed(f"the server gave up: finish_reason {finish_reason!r}")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    in_parts = isinstance(content, list)
    text, has_reasoning = _join(content) if in_parts else (content, False)
    has_reasoning = has_reasoning or any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
    text = text if isinstance(text, str) else refusal if isinstance(refusal, str) else ""
    sent, received = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if received == 0 and not text.strip() and not has_reasoning and finish_reason not in ("length", "content_filter"):
        raise ServerFailed("an empty reply of 0 tokens: the server gave up")
    return Reply(printable(text), finish_reason, sent, received, in_parts, has_reasoning)


def _read_error(error: Any, what: str) -> tuple[str, str]:
    message, code = (error.get("message", error), error.get("code")) if isinstance(error, dict) else (error, None)
    return f"{what}: {printable(str(message))[:200]}", str(code or "")


def _join(parts: list[Any]) -> tuple[str, bool]:
    """Return the text of a list of parts, and whether others hold reasoning."""
    # One below the other, so that two numbers never make a third.
    text = [part if isinstance(part, str) else part["text"] for part in parts if isinstance(part, str) or _holds_text(part)]
    kinds = [str(part.get("type")) for part in parts if isinstance(part, dict)]
    return "\n".join(text), any("reason" in kind or "think" in kind for kind in kinds)


def _holds_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") in ("text", "output_text") and isinstance(part.get("text"), str)


def printable(text: str) -> str:
    """Return a text that any file and any terminal takes: without halves of characters, which JSON can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_answer(prompt: Prompt, key: str, raw: str, seconds: float | None = None) -> Answer:
    """Read the numbers that a kept response gives for a prompt; one that says that the server failed is a failed request."""
    try:
        reply = read_reply(raw)
    except ReplyError as error:
        return Answer(key, (math.nan,) * prompt.n, "failed", str(error))
    asked, _ = _values(prompt, reply, as_asked)
    values, reason = _values(prompt, reply, _either)
    status = "invalid" if reason else "answered"
    return Answer(key, values, status, reason, reply.text, reply.prompt_tokens, reply.answer_tokens, seconds, asked)


def _either(prompt: Prompt, text: str) -> list[float]:
    try:
        return as_asked(prompt, text)
    except ValueError:
        return tolerant(prompt, text)


def _values(prompt: Prompt, reply: Reply, read: Callable[[Prompt, str], list[float]]) -> tuple[tuple[float, ...], str]:
    """Return one score per architecture by one of the two readings, nan where there is none, and why one is nan."""
    nothing = (math.nan,) * prompt.n
    if reply.finish_reason == "content_filter":
        return nothing, "stopped by the content filter"
    if not reply.text.strip():
        reasoned = reply.is_exhausted or reply.has_reasoning
        return nothing, f"the reply is empty, all of it went on reasoning: {ADVICE}" if reasoned else "the reply is empty"
    if reply.finish_reason == "length":
        return nothing, f"cut off at the token limit: {ADVICE}"
    if read is as_asked and reply.in_parts:
        return nothing, "expected a text, got parts"
    try:
        found = read(prompt, reply.text)
    except ValueError as error:
        return nothing, str(error)
    outside = [number for number in found if not prompt.low <= number <= prompt.high]
    reason = f"{outside[0]:g} is outside {prompt.low:g} to {prompt.high:g}" if outside else ""
    return tuple(math.nan if number in outside else prompt.sign * number for number in found), reason
