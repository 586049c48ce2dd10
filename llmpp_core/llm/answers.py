"""What a response says: the text of a Chat Completions reply, and the numbers in it.

Replies are kept as they came and read whenever they are needed, as asked and tolerantly (see `llmpp_core.llm.grammar`). Predictions use
the tolerant reading, and tables count what is invalid under either. A number counts only if it lies in the task's range. Anything else is
invalid: kept, counted, predicted as nan, and not asked again until it fits, which would bias the distribution.
"""

from __future__ import annotations

import json
import math
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
    """What one response holds; token counts are None where the server gave none."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    answer_tokens: int | None
    in_parts: bool = False  #: Whether the content was a list of parts, whose texts are lines of `text`.
    has_reasoning: bool = False  #: Whether there is reasoning beside it.

    @property
    def is_exhausted(self) -> bool:
        """Whether reasoning took all tokens that were allowed. Not to be kept: the model would answer if it had more."""
        return self.finish_reason == "length" and not self.text.strip()


@dataclass(frozen=True)
class Answer:
    """The outcome of one request."""

    key: str  #: Its key in cache and recordings.
    #: One score per architecture asked about, higher is better, by the tolerant reading; nan where there is no valid number.
    values: tuple[float, ...]
    status: str  #: "answered"; "invalid" if any value is nan although the model answered; "failed" if no answer was obtained.
    reason: str = ""  #: Why it is invalid or failed, else "".
    text: str = ""  #: What the model wrote.
    prompt_tokens: int | None = None  #: As the server counted them, as are `answer_tokens`.
    answer_tokens: int | None = None
    seconds: float | None = None  #: How long the call took; None where nobody measured.
    as_asked: tuple[float, ...] = ()  #: `values` if only replies in exactly the form asked for counted; `values` by default.

    def __post_init__(self) -> None:
        object.__setattr__(self, "as_asked", self.as_asked or self.values)


def read_reply(raw: str) -> Reply:
    """Read a response body; raises ReplyError if it holds no reply to keep, ServerFailed if it says that the server failed meanwhile."""
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
    sent, received = token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens"))
    if received == 0 and not text.strip() and not has_reasoning and finish_reason not in ("length", "content_filter"):
        raise ServerFailed("an empty reply of 0 tokens: the server gave up")
    return Reply(printable(text), finish_reason, sent, received, in_parts, has_reasoning)


def _read_error(error: Any, what: str) -> tuple[str, str]:
    message, code = (error.get("message", error), error.get("code")) if isinstance(error, dict) else (error, None)
    return f"{what}: {printable(str(message))[:200]}", str(code or "")


def _join(parts: list[Any]) -> tuple[str, bool]:
    """Return the text of a list of parts, and whether others hold reasoning."""
    texts, has_reasoning = [], False
    for part in parts:
        part = part if isinstance(part, dict) else {"text": part}
        kind = str(part.get("type", "text"))
        has_reasoning = has_reasoning or "reason" in kind or "think" in kind
        if kind in ("text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
    # One below the other, so that two numbers never make a third.
    return "\n".join(texts), has_reasoning


def printable(text: str) -> str:
    """Return a text that any file and any terminal takes: without halves of characters, which JSON can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def token_count(value: Any) -> int | None:
    """Return a count as a server gave it, None if it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_answer(prompt: Prompt, key: str, raw: str, seconds: float | None = None) -> Answer:
    """Read the numbers that a kept response gives for a prompt; one that says that the server failed is a failed request."""
    nothing = (math.nan,) * prompt.n
    try:
        reply = read_reply(raw)
    except ReplyError as error:
        return Answer(key, nothing, "failed", str(error))
    values = asked = nothing
    if not (reason := _unreadable(reply)):
        try:
            exact = as_asked(prompt, reply.text)
        except ValueError:
            exact = []
        try:
            found = exact or tolerant(prompt, reply.text)
        except ValueError as error:
            reason = str(error)
        else:
            values = tuple(prompt.sign * number if prompt.low <= number <= prompt.high else math.nan for number in found)
            asked = values if exact and not reply.in_parts else nothing
            outside = [number for number in found if not prompt.low <= number <= prompt.high]
            reason = f"{outside[0]:g} is outside {prompt.low:g} to {prompt.high:g}" if outside else ""
    status = "invalid" if reason else "answered"
    return Answer(key, values, status, reason, reply.text, reply.prompt_tokens, reply.answer_tokens, seconds, asked)


def _unreadable(reply: Reply) -> str:
    """Say why a reply holds no answer to read, if it does not."""
    if reply.finish_reason == "content_filter":
        return "stopped by the content filter"
    if not reply.text.strip():
        reasoned = reply.is_exhausted or reply.has_reasoning
        return "the reply is empty" + (f", all of it went on reasoning: {ADVICE}" if reasoned else "")
    return f"cut off at the token limit: {ADVICE}" if reply.finish_reason == "length" else ""
