"""The asynchronous core of the client: settles a list of requests against one server inside one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmpp_core.llm.answers import Answer, Reply, read_answer, read_reply
from llmpp_core.llm.cache import Cache, CacheError, Stored
from llmpp_core.llm.connection import connect, read_key
from llmpp_core.llm.faults import Failure, judge, other_limit_field
from llmpp_core.llm.limits import Budget, Pace, Stop
from llmpp_core.llm.prompts import Prompt
from llmpp_core.llm.settings import Settings, estimate_tokens, fewest_tokens
from llmpp_core.llm.share import Share
from llmpp_core.llm.usage import Usage, read_usage

_LONGEST_BACKOFF = 60.0
# Shorter ones are placeholders such as "none", which may occur in any text.
_SHORTEST_KEY = 8


@dataclass(frozen=True)
class Job:
    """One request that has no answer yet."""

    key: str
    prompt: Prompt
    sample: int


@dataclass
class Counts:
    """What happened in the runs of a client; `estimated` counts calls charged by estimate, for want of a count by the server."""

    requests: int = 0
    answered: int = 0
    invalid: int = 0
    failed: int = 0
    retries: int = 0
    estimated: int = 0
    seconds: float = 0.0


@dataclass
class Server:
    """What a client has learned of the server that it asks, and what is to be said of it, once."""

    answered: bool = False
    token_limit_field: str = ""  # Taken in place of the one that the settings name.
    notes: list[str] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)

    def note(self, kind: str, text: str) -> None:
        """Take down something to warn of, unless one of its kind was taken down before."""
        if kind not in self._said:
            self.notes.append(text)
        self._said.add(kind)


class Run:
    """Settles jobs: each ends with its response in the cache, as a failure, or pending if the run stops.

    Parameters
    ----------
    settings, cache, budget, pace, counts
        Of the client; they outlive the run.
    on_settled : callable
        Called after each job that was answered or has failed.
    server : Server, optional
        What is known of the server; the run adds to it.
    known : sequence of Answer
        Answers that were there before to prompts of the same kind; they count for the share of invalid ones.

    Attributes
    ----------
    failures : dict
        Why jobs failed, by key.
    stopped : str
        Why the run stopped early, else "".
    """

    def __init__(
        self,
        settings: Settings,
        cache: Cache,
        budget: Budget,
        pace: Pace,
        counts: Counts,
        on_settled: Callable[[], None],
        server: Server | None = None,
        known: Sequence[Answer] = (),
    ):
        self.settings, self.cache, self.budget, self.pace, self.counts = settings, cache, budget, pace, counts
        self.on_settled = on_settled
        self.server = server or Server()
        self.share = Share(settings, known)
        self._refused: set[str] = set()
        self.failures: dict[str, str] = {}
        self.stopped = ""
        self._failures_in_a_row = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping, self._changed = asyncio.Event(), asyncio.Event()
        self._http: Any = None
        self._key = ""

    def settle(self, jobs: Sequence[Job], canary: bool) -> None:
        """Settle the jobs, the first one alone if `canary`; raises Stop if that is not possible for all of them."""
        asyncio.run(self._settle(deque(jobs), canary))
        if self.stopped:
            raise Stop(self.stopped)

    def stop(self, reason: str) -> None:
        """Admit no further calls; those in flight are paid for and are waited for. For use by any thread."""
        self.stopped = self.stopped or reason
        # A loop that has ended has nothing left to wake.
        with contextlib.suppress(RuntimeError):
            if self._loop:
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def _settle(self, queue: deque[Job], canary: bool) -> None:
        self._loop = asyncio.get_running_loop()
        renewal = asyncio.create_task(self._renew_claims())
        try:
            self.share.check()
            self._key = read_key(self.settings)
            async with connect(self.settings, self._key) as self._http:
                if canary:
                    await self._work(queue, canary=True)
                workers = [self._work(queue) for _ in range(min(self.settings.concurrency, len(queue)))]
                for outcome in await asyncio.gather(*workers, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
            if not self.stopped and (complaint := self.share.complaint()):
                self.server.notes.append(f"{self.settings.model}: {complaint}")
        except Stop as stop:
            self.stop(str(stop))
        finally:
            renewal.cancel()
            self._http, self._key = None, ""
            with contextlib.suppress(CacheError):
                self.cache.release()

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(self.cache.lease / 3)
            with contextlib.suppress(CacheError):  # If the disk is full, the next answer says so.
                self.cache.renew()

    def _check_canary(self, job: Job, others: bool) -> bool:
        """Return whether the others may be asked now; raises Stop if they must not be."""
        if job.key in self._refused:
            return False
        if job.key in self.failures:
            raise Stop(f"the first request failed: {self.failures[job.key]}")
        if others and not self.stopped:
            self.share.check_first()
        return True

    async def _work(self, queue: deque[Job], canary: bool = False) -> None:
        claimed_elsewhere = 0
        try:
            while queue and not self.stopped:
                job = queue.popleft()
                claim = self.cache.claim(job.key)
                if claim == "answered":  # By another process, since this one looked.
                    self.on_settled()
                elif claim == "claimed":
                    await self._settle_one(job, queue)
                    if canary and self._check_canary(job, bool(queue)):
                        return
                else:
                    queue.append(job)
                    claimed_elsewhere += 1
                    if claimed_elsewhere >= len(queue):
                        claimed_elsewhere = 0
                        await self._sleep(self.cache.lease / 20)
        except Stop as stop:
            self.stop(self._redact(str(stop)))
        except CacheError as error:
            self.stop(str(error))
        except BaseException as error:
            self.stop(f"{type(error).__name__} in the client")
            raise

    async def _settle_one(self, job: Job, queue: deque[Job]) -> None:
        self.counts.requests += 1
        for attempt in range(self.settings.retries + 1):
            self.counts.retries += attempt > 0
            outcome = await self._attempt(job)
            if isinstance(outcome, Answer):
                self._failures_in_a_row = 0
                self.server.answered = True
                self.counts.answered += 1
                self.counts.invalid += outcome.status == "invalid"
                self.share.count(outcome)
                self.on_settled()
                if queue:
                    self.share.check()
                return
            failure = outcome
            # A server that was never heard of is absent or wrongly named; one that has answered may come back.
            if not failure.again or attempt == self.settings.retries or (failure.silent and not self.server.answered):
                break
            await self._wait_before_retry(failure, attempt)
            if self.stopped:
                return
        self.cache.release(job.key)
        self.failures[job.key] = self._redact(failure.reason)
        self.counts.failed += 1
        self.on_settled()
        if failure.refused:
            self._refused.add(job.key)
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.settings.max_failures:
            raise Stop(f"{self._failures_in_a_row} requests failed in a row, the last one: {failure.reason}")

    async def _attempt(self, job: Job) -> Answer | Failure:
        """Make one call and charge for it; an answer is in the cache when this returns."""
        estimate = estimate_tokens(job.prompt)
        allowed = self.settings.answer_tokens * job.prompt.n
        aside = self.budget.worst_case(estimate, allowed)
        await self._admit(*aside)
        used = (0, 0)
        try:
            await self._keep_pace(sum(aside))
            started = time.perf_counter()
            raw = await self._call(job)
            seconds = round(time.perf_counter() - started, 3)
            reply = read_reply(raw)
            usage = read_usage(raw, fewest := fewest_tokens(job.prompt))
            low = 0 < (usage.prompt_tokens or 0) < fewest
            used = self._charge(usage, reply, low, aside)
            self.budget.learn(estimate, allowed, used)
            if low:
                self._check_prompt_arrived(usage.prompt_tokens or 0, fewest)
            if reply.finish_reason == "length" and not reply.text.strip():
                advice = "raise answer_tokens or lower reasoning_effort"
                return Failure(f"all {allowed} tokens allowed went on reasoning, none on the answer: {advice}", again=False)
            self.cache.put(job.key, self.settings.identity(), job.prompt, job.sample, Stored(raw, seconds))
            return read_answer(job.prompt, job.key, raw, seconds)
        except (Stop, CacheError):
            raise
        except Exception as error:
            failure = judge(error, self.settings.deadline)
            if failure.charged:
                used = aside
                self.counts.estimated += 1
            return failure
        finally:
            self.budget.settle(aside, used)
            self._changed.set()

    async def _admit(self, prompt_tokens: int, answer_tokens: int) -> None:
        while not self.budget.admit(prompt_tokens, answer_tokens):
            self._changed.clear()
            await self._changed.wait()
            if self.stopped:
                raise Stop(self.stopped)

    async def _keep_pace(self, tokens: int) -> None:
        await self._sleep(self.pace.reserve(tokens))
        while (seconds := self.pace.paused()) and not self.stopped:
            await self._sleep(seconds)
        if self.stopped:
            raise Stop(self.stopped)

    async def _call(self, job: Job) -> str:
        sent = self.server.token_limit_field or self.settings.token_limit_field
        try:
            return await self._send(job, sent)
        except Exception as error:
            # Once only: the field that is sent now was refused in place of the other before, or this is the other.
            if sent != self.settings.token_limit_field or not (other := other_limit_field(error, sent)):
                raise
            self.server.token_limit_field = other
            raw = await self._send(job, other)
            said = f"the server of {self.settings.model} does not know {sent}: {other} was sent instead; set token_limit_field to it"
            self.server.note("field", said)
            return raw

    async def _send(self, job: Job, token_limit_field: str) -> str:
        body = self.settings.body(job.prompt)
        body[token_limit_field] = body.pop(self.settings.token_limit_field)
        create = self._http.chat.completions.with_raw_response.create
        call = create(model=body.pop("model"), messages=body.pop("messages"), extra_body=body)
        # The package's own timeout starts anew with every byte, so a dripping server would never run into it.
        response = await asyncio.wait_for(call, self.settings.deadline)
        return self._redact(response.http_response.text)

    def _charge(self, usage: Usage, reply: Reply, low: bool, aside: tuple[int, int]) -> tuple[int, int]:
        """Return the tokens to charge: those that were counted, or for want of a plausible count those that were set aside."""
        # A server that costs nothing need not count; of another, no tokens or too few are a count that is missing.
        strict = not self.settings.is_free
        prompt_missing = usage.prompt_tokens is None or (strict and (low or not usage.prompt_tokens))
        answer_missing = usage.answer_tokens is None or (strict and not usage.answer_tokens and bool(reply.text))
        self.counts.estimated += prompt_missing or answer_missing
        return aside[0] if prompt_missing else usage.prompt_tokens or 0, aside[1] if answer_missing else usage.answer_tokens or 0

    def _check_prompt_arrived(self, counted: int, fewest: int) -> None:
        said = f"{counted} tokens in a prompt of {fewest} words and numbers"
        if not self.server.answered and not self.share.known:
            raise Stop(
                f"the server counted {said}, so it cut the prompt: raise its context length (num_ctx in Ollama); or it counts only what it "
                "had not cached: start it anew"
            )
        why = "it leaves out what it had cached, or it cuts prompts (see num_ctx in Ollama)"
        self.server.note("low", f"the server of {self.settings.model} counted {said}: {why}")

    async def _wait_before_retry(self, failure: Failure, attempt: int) -> None:
        seconds = random.uniform(0, min(_LONGEST_BACKOFF, self.settings.backoff * 2**attempt))
        if failure.wait is not None:
            seconds = failure.wait + random.uniform(0, self.settings.backoff)
        if failure.everyone:
            self.pace.pause(seconds)
        else:
            await self._sleep(seconds)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or less if the run stops."""
        if seconds > 0 and not self.stopped:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    def _redact(self, text: str) -> str:
        """Take the key out of what a server said, should it repeat it."""
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text
