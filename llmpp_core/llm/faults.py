"""What to do about a call that failed: try again, when, and whether that goes for all calls; or stop the run."""

from __future__ import annotations

import contextlib
import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmpp_core.llm.answers import ReplyError
from llmpp_core.llm.limits import Stop

# Longest wait in seconds that a server may ask for.
_LONGEST_WAIT = 300.0
# The two names of the field that limits an answer; servers take one or the other, or both.
_LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
# Of 300 to 499, those that may pass: timeouts, conflicts, locks, rates, a generation that failed (424), a client that left (499).
_PASSING = (408, 409, 423, 424, 425, 429, 499)
# Of 500 and more, those that will not: not implemented, unknown version of HTTP, a network that wants a login.
_PERMANENT = (501, 505, 511)
_PERMANENT_CODES = re.compile(
    r"insufficient_(quota|balance|credits?|funds)|billing_(hard_limit_reached|not_active)|exceeded_current_quota(_error)?|"
    r"(invalid|incorrect)_api_key(_error)?|authentication_error|permission_(error|denied)|account_deactivated|access_terminated|model_not_found"
)
# A 429 with one of these concerns the account; others, such as "overloaded", concern only the call at hand.
_ACCOUNT_CODES = {"rate_limit_exceeded", "rate_limit_error", "requests", "tokens"}
# How vendors name the refusal of a prompt: codes and types first, then what the message says where there is no such code.
_FILTER_CODES = re.compile(
    r"content_?(filter|policy)|moderation_?(blocked|error)|responsible_?ai|data_?inspection|invalid_prompt|prohibited_?content|sensitive",
    re.I,
)
_FILTER_WORDS = re.compile(
    r"content (management|usage) polic|content filter|content polic|usage polic|input was flagged|prompt was flagged|content exists risk|"
    r"inappropriate content",
    re.I,
)
_FILTER_STATUS = (400, 403, 422, 451)
_UNKNOWN_FIELD = re.compile(r"unsupported|not supported|unrecogni[sz]ed|unknown|not permitted|unexpected|extra_forbidden", re.I)
# The settings that make fields of the request which a server may refuse.
_SETTINGS = dict.fromkeys(_LIMIT_FIELDS, "token_limit_field") | {
    "temperature": "temperature",
    "reasoning_effort": "reasoning_effort",
    "response_format": "form (json needs this field, single and batched do not)",
}


class Failure(NamedTuple):
    """A call that gave no answer."""

    reason: str
    wait: float | None = None  #: Seconds that the server asked to wait.
    everyone: bool = False  #: Whether all calls have to wait.
    charged: bool = False  #: Whether the tokens may have been paid for.
    again: bool = True  #: Whether repeating the call may help.
    silent: bool = False  #: Whether nothing was heard of the server.
    refused: bool = False  #: Whether a content filter refused the prompt, which says nothing about others.


def judge(error: Exception, deadline: float) -> Failure:
    """Say what to do after an error of a call; raises Stop if no other call would fare better, and what is no failure of a call (a bug)."""
    import openai

    if isinstance(error, ReplyError):
        if re.fullmatch(r"[1-5][0-9][0-9]", error.code):  # A gateway passes on the status of the server behind it.
            return _judge_status(int(error.code), {"message": str(error)}, {}, "")._replace(charged=True)
        return _judge_codes({error.code}, str(error), _FILTER_STATUS[0]) or Failure(str(error), charged=True)
    # The deadline's and the connection's own.
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return Failure(f"no answer within the deadline of {deadline:g} s", charged=True, silent=True)
    if isinstance(error, openai.APIStatusError):
        return _judge_status(error.status_code, error.body, error.response.headers, error.message)
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        # A connection that was never made cannot have cost anything.
        refused = type(cause).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")
        url = error.request.url
        where = f"{url.host}:{url.port or (443 if url.scheme == 'https' else 80)}"
        return Failure(f"connection to {where} failed ({type(cause).__name__}: {cause})", charged=not refused, silent=refused)
    raise error


def _judge_status(status: int, body: Any, headers: Mapping[str, str], message: str) -> Failure:
    error = _error(body)
    inner = error.get("innererror")
    codes = {str(place.get(name)) for place in (error, inner if isinstance(inner, dict) else {}) for name in ("code", "type")}
    said = " ".join(str(error.get("message") or error.get("detail") or message).split())[:200]
    reason = f"HTTP {status}: {said}"
    if failure := _judge_codes(codes, reason, status):
        return failure
    if (300 <= status < 500 and status not in _PASSING) or status in _PERMANENT:
        raise Stop(reason + _advice(error, said))
    wait = retry_after(headers)
    if wait is not None and wait > _LONGEST_WAIT:
        raise Stop(f"{reason}; the server asks to wait {wait:.0f} s")
    exhausted = any(headers.get(f"x-ratelimit-remaining-{what}") == "0" for what in ("requests", "tokens"))
    return Failure(reason, wait, everyone=status == 429 and (exhausted or not codes.isdisjoint(_ACCOUNT_CODES)))


def _judge_codes(codes: set[str], reason: str, status: int) -> Failure | None:
    """Say what to do where the error says more than its status; raises Stop if no other call would fare better."""
    if any(_PERMANENT_CODES.fullmatch(code) for code in codes):
        raise Stop(reason)
    filtered = any(_FILTER_CODES.search(code) for code in codes) or _FILTER_WORDS.search(reason)
    # Vendors charge for the prompt that they looked at.
    return Failure(reason, charged=True, again=False, refused=True) if filtered and status in _FILTER_STATUS else None


def _error(body: Any) -> Mapping[str, Any]:
    """Return the object that describes an error, wherever a server puts it."""
    body = body[0] if isinstance(body, list) and body else body
    error = body if isinstance(body, dict) else {"message": body} if isinstance(body, str) else {}
    inner = error.get("error")
    return inner if isinstance(inner, dict) else error | {"message": inner} if isinstance(inner, str) else error


def _advice(error: Mapping[str, Any], said: str) -> str:
    """Name the setting to change if the server complains about a field of the request."""
    if _UNKNOWN_FIELD.search(f"{error.get('code')} {said}"):
        for field, setting in _SETTINGS.items():
            if error.get("param") == field or re.search(rf"\b{field}\b", said):
                return f"; the setting to change is {setting}"
    return ""


def other_limit_field(error: Exception, sent: str) -> str | None:
    """Return the name to send the limit of an answer under if a server says that it does not know the one that was sent."""
    import openai

    if not isinstance(error, openai.APIStatusError) or error.status_code not in (400, 422) or sent not in _LIMIT_FIELDS:
        return None
    said = f"{error.body} {error.message}"
    unknown = _UNKNOWN_FIELD.search(said) and re.search(rf"\b{sent}\b", said)
    return _LIMIT_FIELDS[1 - _LIMIT_FIELDS.index(sent)] if unknown else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Retry-After (seconds or a date) or retry-after-ms asks for, None if it is absent or unreadable."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            return max(0.0, float(text) * unit)
        except ValueError:
            with contextlib.suppress(ValueError, OverflowError):  # The year 99999, say.
                if date := email.utils.parsedate_tz(text):
                    return max(0.0, email.utils.mktime_tz(date) - time.time())
    return None
