"""What bounds a run: the pace that a server allows, the money and tokens that its user allows, and the share of invalid answers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence

from llmpp_core.llm.answers import Answer, token_count
from llmpp_core.llm.settings import Settings

# Answers from which on the share of invalid ones is judged: of fewer, half may be invalid by chance.
_ENOUGH = 20
_ADVICE = (
    "a reply is valid if it leaves no doubt which numbers are meant: try another form of request (single, batched, json), another level of "
    "the prompt or, where replies are cut off, more answer_tokens"
)


class Stop(Exception):
    """The run must not go on; the message says why, in one line."""


class Pace:
    """Spaces calls out so that the rate limits are kept, and holds all of them back when the account is told to wait."""

    def __init__(self, settings: Settings):
        self._seconds = 60.0 / settings.requests_per_minute if settings.requests_per_minute else 0.0
        self._seconds_per_token = 60.0 / settings.tokens_per_minute if settings.tokens_per_minute else 0.0
        self._next = self._paused_until = 0.0

    def reserve(self, tokens: int) -> float:
        """Take the next slot for a call of this many tokens; returns the seconds to wait for it."""
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + max(self._seconds, tokens * self._seconds_per_token)
        return start - now

    def pause(self, seconds: float) -> None:
        """Hold back all calls for some seconds from now."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def paused(self) -> float:
        """Return the seconds for which calls are still held back."""
        return max(0.0, self._paused_until - time.monotonic())


class Budget:
    """What was spent and what calls in flight may cost at worst."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self.prompt_tokens = self.answer_tokens = 0  #: Charged so far.
        self._in_flight = (0, 0)
        # The most that the server counted for each token estimated in a prompt or allowed in an answer: some vendors bill reasoning that
        # their limit does not bound.
        self._per_estimated = self._per_allowed = 1.0

    @property
    def spent(self) -> float | None:
        """Money spent, None if the price is unknown."""
        price = self._settings.price
        return None if price is None else price.of(self.prompt_tokens, self.answer_tokens)

    def learn(self, estimate: int, allowed: int, used: tuple[int, int]) -> None:
        """Take note of what a call used, for the worst case of the next ones."""
        self._per_estimated = max(self._per_estimated, used[0] / estimate)
        self._per_allowed = max(self._per_allowed, used[1] / allowed)

    def admit(self, estimate: int, allowed: int) -> tuple[int, int] | None:
        """Set the worst case of a call aside and return it; None if it may fit once calls in flight are settled, Stop if it never will."""
        aside = math.ceil(estimate * self._per_estimated), math.ceil(allowed * self._per_allowed)
        if excess := self._excess(aside):
            raise Stop(f"the next request could exceed {excess}")
        flying = aside[0] + self._in_flight[0], aside[1] + self._in_flight[1]
        if self._excess(flying):
            return None
        self._in_flight = flying
        return aside

    def settle(self, aside: tuple[int, int], used: tuple[int, int]) -> None:
        """Replace what was set aside for a call by what it used."""
        self._in_flight = self._in_flight[0] - aside[0], self._in_flight[1] - aside[1]
        self.prompt_tokens += used[0]
        self.answer_tokens += used[1]

    def _excess(self, more: tuple[int, int]) -> str:
        """Return the limit that is passed if so many tokens more are sent and received."""
        prompt, answer = self.prompt_tokens + more[0], self.answer_tokens + more[1]
        cap, price, budget = self._settings.token_cap, self._settings.price, self._settings.budget
        if cap is not None and prompt + answer > cap:
            return f"the token cap of {cap:,}"
        if price is not None and budget is not None and price.of(prompt, answer) > budget:
            return f"the budget of {budget:g} {price.currency}"
        return ""


class Share:
    """The share of invalid ones among the answers to the prompts at hand; `known` are those that were there before the run."""

    def __init__(self, settings: Settings, known: Sequence[Answer]):
        self._settings, self.known = settings, bool(known)
        self._answered = self._invalid = 0
        self._last: Answer | None = None
        for answer in known:
            self.count(answer)

    def count(self, answer: Answer) -> None:
        """Count an answer."""
        self._answered += 1
        if answer.status == "invalid":
            self._invalid, self._last = self._invalid + 1, answer

    def check_first(self) -> None:
        """Raise Stop if the first answer is invalid and others cost money; whoever runs again has read that and decided to go on."""
        if self._last and not self.known and not self._settings.is_free and self._settings.max_invalid < 1:
            raise Stop(
                f"the first answer is invalid, {self._last.reason}; it is kept and nothing else was sent: {_ADVICE}. Run again to go on "
                f"until {_ENOUGH} answers have come and more than {self._settings.max_invalid:.0%} of them are invalid"
            )

    def check(self) -> None:
        """Raise Stop if too many answers are invalid."""
        if found := self.complaint():
            raise Stop(f"{found}; they are kept: {_ADVICE}; or set max_invalid=1 to go on")

    def complaint(self) -> str:
        """Return one line about invalid answers if there are too many, else ""."""
        if not self._last or self._answered < _ENOUGH or self._invalid <= self._settings.max_invalid * self._answered:
            return ""
        shown = f"{self._last.text[:80]!r} ({self._last.reason})"
        return f"{self._invalid} of {self._answered} answers are invalid, the last one {shown}"


def read_usage(raw: str, fewest: int) -> tuple[int | None, int | None]:
    """Return the tokens of a prompt, of at least `fewest`, and its answer that a response counts, as vendors bill them, None where not.

    Some vendors count the reasoning in the total alone, so an answer has at least total - prompt tokens. Some servers count only what they
    had not cached, so cached tokens are added where a count is implausible without them.
    """
    usage = json.loads(raw).get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = token_count(details.get("cached_tokens")) or 0 if isinstance(details, dict) else 0
    prompt, answer, total = (token_count(usage.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if prompt is None and answer is not None and total is not None:
        prompt = max(0, total - answer)
    if prompt is not None and (prompt < cached or prompt < fewest <= prompt + cached):
        prompt += cached
    if prompt is not None and total is not None:
        answer = max(answer or 0, total - prompt)
    return prompt, answer
