"""What bounds a run: the pace that a server allows, and the money and tokens that its user allows."""

from __future__ import annotations

import math
import threading
import time

from llmpp_core.llm.settings import Settings


class Stop(Exception):
    """The run must not go on; the message says why, in one line."""


class Pace:
    """Spaces calls out so that the rate limits are kept, and holds all of them back when the account is told to wait."""

    def __init__(self, settings: Settings):
        self._seconds = 60.0 / settings.requests_per_minute if settings.requests_per_minute else 0.0
        self._seconds_per_token = 60.0 / settings.tokens_per_minute if settings.tokens_per_minute else 0.0
        self._next = 0.0
        self._paused_until = 0.0

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
    """What was spent and what calls in flight may cost at worst.

    Parameters
    ----------
    settings : Settings
        Gives price, budget and token cap.

    Attributes
    ----------
    prompt_tokens, answer_tokens : int
        Charged so far.
    tokens_per_estimate, tokens_per_allowed : float
        The most that a server counted in a prompt for each token estimated, and in an answer for each token allowed, at least 1: some
        vendors bill reasoning that their limit does not bound.
    """

    def __init__(self, settings: Settings):
        self.price, self.limit, self.token_cap = settings.price, settings.budget, settings.token_cap
        self.prompt_tokens = self.answer_tokens = 0
        self.tokens_per_estimate = self.tokens_per_allowed = 1.0
        self._in_flight = [0, 0]
        self._lock = threading.Lock()

    @property
    def spent(self) -> float | None:
        """Money spent, None if the price is unknown."""
        return None if self.price is None else self.price.of(self.prompt_tokens, self.answer_tokens)

    def worst_case(self, estimate: int, allowed: int) -> tuple[int, int]:
        """Return the most tokens of a call whose prompt is estimated at some and whose answer may have some."""
        return math.ceil(estimate * self.tokens_per_estimate), math.ceil(allowed * self.tokens_per_allowed)

    def learn(self, estimate: int, allowed: int, used: tuple[int, int]) -> None:
        """Take note of what a call used, for the worst case of the next ones."""
        self.tokens_per_estimate = max(self.tokens_per_estimate, used[0] / estimate)
        self.tokens_per_allowed = max(self.tokens_per_allowed, used[1] / allowed)

    def admit(self, prompt_tokens: int, answer_tokens: int) -> bool:
        """Set the worst case of a call aside; False if it may fit once calls in flight are settled; raises Stop if it never will."""
        with self._lock:
            settled = self._excess(self.prompt_tokens + prompt_tokens, self.answer_tokens + answer_tokens)
            if settled:
                raise Stop(settled)
            flying = (self.prompt_tokens + self._in_flight[0] + prompt_tokens, self.answer_tokens + self._in_flight[1] + answer_tokens)
            if self._excess(*flying):
                return False
            self._in_flight[0] += prompt_tokens
            self._in_flight[1] += answer_tokens
            return True

    def settle(self, aside: tuple[int, int], used: tuple[int, int]) -> None:
        """Replace what was set aside for a call by what it used."""
        with self._lock:
            self._in_flight = [self._in_flight[0] - aside[0], self._in_flight[1] - aside[1]]
            self.prompt_tokens += used[0]
            self.answer_tokens += used[1]

    def _excess(self, prompt_tokens: int, answer_tokens: int) -> str:
        total = prompt_tokens + answer_tokens
        if self.token_cap is not None and total > self.token_cap:
            return f"the next request could exceed the token cap of {self.token_cap:,}"
        if self.price is not None and self.limit is not None and self.price.of(prompt_tokens, answer_tokens) > self.limit:
            return f"the next request could exceed the budget of {self.limit:g} {self.price.currency}"
        return ""
