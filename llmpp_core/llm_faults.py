"""What to do about a call that failed: try again, when, and whether that goes for all calls; or stop the run."""

from __future__ import annotations

import datetime
import email.utils
from collections.abc import Mapping
from typing import Any, NamedTuple

from llmpp_core.llm_answers import ReplyError
from llmpp_core.llm_limits import Stop

#: Longest wait in seconds that a server may ask for.
LONGEST_WAIT = 300.0
_PERMANENT_STATUS = (400, 401, 403, 404, 405, 410, 413, 415, 422)
_PERMANENT_CODES = ("insufficient_quota", "billing_hard_limit_reached", "invalid_api_key", "model_not_found")
# A 429 with one of these concerns the account; others, such as "overloaded", concern only the call at hand.
_ACCOUNT_CODES = ("rate_limit_exceeded", "rate_limit_error", "requests", "tokens")


class Failure(NamedTuple):
    """A call that gave no answer.

    `wait` is the delay in seconds that the server asked for, `everyone` says whether it holds for all calls, `charged`
    whether the tokens may have been paid for, and `again` whether repeating the call may help.
    """

    reason: str
    wait: float | None = None
    everyone: bool = False
    charged: bool = False
    again: bool = True


def judge(error: Exception) -> Failure:
    """Say what to do after an error of a call; raises Stop if no other call would fare better.

    Errors that are no failure of a call (a bug, say) are raised again.
    """
    import openai

    if isinstance(error, ReplyError):
        if error.code in _PERMANENT_CODES:
            raise Stop(str(error))
        return Failure(str(error), charged=True)
    # The deadline's and the connection's own.
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return Failure("no answer before the deadline", charged=True)
    if isinstance(error, openai.APIStatusError):
        return _judge_status(error.status_code, error.body, error.response.headers, error.message)
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        # A connection that was never made cannot have cost anything.
        refused = type(cause).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout")
        return Failure(f"connection failed ({type(cause).__name__}: {cause})", charged=not refused)
    raise error


def _judge_status(status: int, body: Any, headers: Mapping[str, str], message: str) -> Failure:
    error = body if isinstance(body, dict) else {}
    error = error["error"] if isinstance(error.get("error"), dict) else error
    codes = {str(error.get("code")), str(error.get("type"))}
    said = " ".join(str(error.get("message") or message).split())[:200]
    reason = f"HTTP {status}: {said}"
    if status in _PERMANENT_STATUS or 300 <= status < 400 or codes & set(_PERMANENT_CODES):
        raise Stop(reason)
    wait = retry_after(headers)
    if wait is not None and wait > LONGEST_WAIT:
        raise Stop(f"{reason}; the server asks to wait {wait:.0f} s")
    exhausted = any(headers.get(f"x-ratelimit-remaining-{what}") == "0" for what in ("requests", "tokens"))
    return Failure(reason, wait, everyone=status == 429 and (bool(codes & set(_ACCOUNT_CODES)) or exhausted))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Retry-After (seconds or a date) or retry-after-ms asks for, None if it is absent or unreadable."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            return max(0.0, float(text) * unit)
        except ValueError:
            pass
        try:
            date = email.utils.parsedate_to_datetime(text)
        except ValueError:
            continue
        date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
        return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
    return None
