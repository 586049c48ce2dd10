"""What a call is charged: the tokens that a server counted, as vendors bill them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Usage(NamedTuple):
    """Tokens of one call, None where the server gave no count; `cached` of the prompt were known to the server beforehand."""

    prompt_tokens: int | None
    answer_tokens: int | None
    cached: int


def read_usage(raw: str, fewest: int) -> Usage:
    """Read the counts of a response body.

    Parameters
    ----------
    raw : str
        A body that `llm_answers.read_reply` accepts.
    fewest : int
        Tokens that the prompt has at least.

    Returns
    -------
    Usage
        Some vendors count the reasoning in the total alone, so an answer has at least total - prompt tokens. Some servers count only what
        they had not cached, so cached tokens are added where a count is implausible without them.
    """
    usage = json.loads(raw).get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) or 0 if isinstance(details, dict) else 0
    prompt, answer, total = (_count(usage.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if prompt is None and answer is not None and total is not None:
        prompt = max(0, total - answer)
    if prompt is not None and (prompt < cached or prompt < fewest <= prompt + cached):
        prompt += cached
    if prompt is not None and total is not None:
        answer = max(answer or 0, total - prompt)
    return Usage(prompt, answer, cached)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
