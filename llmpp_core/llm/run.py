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

from llmpp_core.llm.answers import read_answer, read_reply
from llmpp_core.llm.cache import Cache, CacheError, Stored
from llmpp_core.llm.connection import connect, read_key
from llmpp_core.llm.faults import Failure, judge, other_limit_field
from llmpp_core.llm.limits import Budget, Pace, Share, Stop, read_usage
from llmpp_core.llm.prompts import Prompt
from llmpp_core.llm.settings import Settings, estimate_tokens, fewest_tokens

_LONGEST_BACKOFF = 60.0
# Shorter ones are placeholders such as "none", which may occur in any text.
_SHORTEST_KEY = 8


@dataclass(frozen=True)
class Job:
    """One request for an answer."""

    key: str  #: Of the answer, in cache and recordings.
    prompt: Prompt
    sample: int


@dataclass
class Counts:
    """What happened in the runs of a client, and what they have learned of the server."""

    requests: int = 0
    answered: int = 0
    invalid: int = 0
    failed: int = 0
    retries: int = 0
    estimated: int = 0  #: Calls charged by estimate, for want of a count by the server.
    seconds: float = 0.0
    token_limit_field: str = ""  #: What the server takes in place of the field that the settings name.
    notes: dict[str, str] = field(default_factory=dict)  #: What to warn of, once of each kind; "" when that is done.


@dataclass(repr=False, eq=False)
class Run:
    """Settles jobs: each ends with its response in the cache, in `failures`, or pending if the run stops."""

    settings: Settings
    cache: Cache
    # These outlive the run.
    budget: Budget
    pace: Pace
    counts: Counts
    share: Share
    on_settled: Callable[[], None]  #: Called after each job that was answered or has failed.
    failures: dict[str, str] = field(default_factory=dict)  #: Why jobs failed, by key.
    stopped: str = ""  #: Why the run stopped early.
    _failures_in_a_row: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _http: Any = None
    _key: str = ""

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
                self.counts.notes[complaint] = f"{self.settings.model}: {complaint}"
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

    async def _work(self, queue: deque[Job], canary: bool = False) -> None:
        """Settle jobs until none is left or, if `canary`, until one is whose outcome says something about the others."""
        try:
            while queue and not self.stopped:
                job = queue.popleft()
                claim = self.cache.claim(job.key)
                if claim == "answered":  # By another process, since this one looked.
                    self.on_settled()
                elif claim == "claimed":
                    failure = await self._settle_one(job, queue)
                    if canary and not (failure and failure.refused):
                        if failure:
                            raise Stop(f"the first request failed: {failure.reason}")
                        if queue and not self.stopped:
                            self.share.check_first()
                        return
                else:
                    queue.append(job)
                    await self._sleep(self.cache.lease / 20)
        except Stop as stop:
            self.stop(self._redact(str(stop)))
        except CacheError as error:
            self.stop(str(error))
        except BaseException as error:
            self.stop(f"{type(error).__name__} in the client")
            raise

    async def _settle_one(self, job: Job, others: deque[Job]) -> Failure | None:
        """Settle a job; returns its failure, None if it was answered or the run stops."""
        self.counts.requests += 1
        for attempt in range(self.settings.retries + 1):
            self.counts.retries += attempt > 0
            failure = await self._attempt(job)
            if failure is None:
                self._failures_in_a_row = 0
                self.on_settled()
                if others:
                    self.share.check()
                return None
            # A server that was never heard of is absent or wrongly named; one that has answered may come back.
            if not failure.again or attempt == self.settings.retries or (failure.silent and not self.counts.answered):
                break
            seconds = random.uniform(0, min(_LONGEST_BACKOFF, self.settings.backoff * 2**attempt))
            if failure.wait is not None:
                seconds = failure.wait + random.uniform(0, self.settings.backoff)
            if failure.everyone:
                self.pace.pause(seconds)
            else:
                await self._sleep(seconds)
            if self.stopped:
                return None
        assert failure is not None
        self.cache.release(job.key)
        self.failures[job.key] = self._redact(failure.reason)
        self.counts.failed += 1
        self.on_settled()
        self._failures_in_a_row += not failure.refused
        if self._failures_in_a_row >= self.settings.max_failures:
            raise Stop(f"{self._failures_in_a_row} requests failed in a row, the last one: {failure.reason}")
        return failure

    async def _attempt(self, job: Job) -> Failure | None:
        """Make one call and charge for it; an answer is in the cache and counted when this returns."""
        estimate, allowed = estimate_tokens(job.prompt), self.settings.answer_tokens * job.prompt.n
        while (aside := self.budget.admit(estimate, allowed)) is None:
            self._changed.clear()
            await self._changed.wait()
            if self.stopped:
                raise Stop(self.stopped)
        used = (0, 0)
        try:
            await self._sleep(self.pace.reserve(sum(aside)))
            while (seconds := self.pace.paused()) and not self.stopped:
                await self._sleep(seconds)
            if self.stopped:
                raise Stop(self.stopped)
            started = time.perf_counter()
            raw = await self._call(job)
            seconds = round(time.perf_counter() - started, 3)
            reply = read_reply(raw)
            fewest = fewest_tokens(job.prompt)
            sent, received = read_usage(raw, fewest)
            used = self._charge(sent, received, fewest, bool(reply.text), aside)
            # What was counted; its own estimates would raise the next ones without end.
            self.budget.learn(estimate, allowed, (sent or 0, received or 0))
            if sent and sent < fewest:
                self._note_low_count(sent, fewest)
            if reply.is_exhausted:
                advice = "raise answer_tokens or lower reasoning_effort"
                return Failure(f"all {allowed} tokens allowed went on reasoning, none on the answer: {advice}", again=False)
            self.cache.put(job.key, self.settings.identity(), job.prompt, job.sample, Stored(raw, seconds))
            answer = read_answer(job.prompt, job.key, raw, seconds)
            self.counts.answered += 1
            self.counts.invalid += answer.status == "invalid"
            self.share.count(answer)
            return None
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

    async def _call(self, job: Job) -> str:
        body = self.settings.body(job.prompt)
        named, allowed = self.settings.token_limit_field, body.pop(self.settings.token_limit_field)
        sent = self.counts.token_limit_field or named
        try:
            return await self._send(body | {sent: allowed})
        except Exception as error:
            # Once only: the field that is sent now was refused in place of the other before, or this is the other.
            if sent != named or not (other := other_limit_field(error, sent)):
                raise
        self.counts.token_limit_field = other
        raw = await self._send(body | {other: allowed})
        said = f"the server of {self.settings.model} does not know {sent}: {other} was sent instead; set token_limit_field to it"
        self.counts.notes.setdefault("field", said)
        return raw

    async def _send(self, body: dict[str, Any]) -> str:
        create = self._http.chat.completions.with_raw_response.create
        call = create(model=body.pop("model"), messages=body.pop("messages"), extra_body=body)
        # The package's own timeout starts anew with every byte, so a dripping server would never run into it.
        response = await asyncio.wait_for(call, self.settings.deadline)
        return self._redact(response.http_response.text)

    def _charge(self, sent: int | None, received: int | None, fewest: int, wrote: bool, aside: tuple[int, int]) -> tuple[int, int]:
        """Return the tokens to charge: those that were counted, or for want of a plausible count those that were set aside."""
        if not self.settings.is_free:
            # A server that costs nothing need not count; of another, no tokens or too few are a count that is missing.
            sent = sent if sent and sent >= fewest else None
            received = received if received or not wrote else None
        self.counts.estimated += sent is None or received is None
        return aside[0] if sent is None else sent, aside[1] if received is None else received

    def _note_low_count(self, counted: int, fewest: int) -> None:
        """Warn of a prompt that was cut, as it seems; raises Stop if it is the first, which no server has in a cache."""
        said = f"{counted} tokens in a prompt of {fewest} words and numbers"
        if not self.counts.answered and not self.share.known:
            raise Stop(
                f"the server counted {said}, so it cut the prompt: raise its context length (num_ctx in Ollama); or it counts only what it "
                "had not cached: start it anew"
            )
        why = "it leaves out what it had cached, or it cuts prompts (see num_ctx in Ollama)"
        self.counts.notes.setdefault("low", f"the server of {self.settings.model} counted {said}: {why}")

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or less if the run stops."""
        if seconds > 0 and not self.stopped:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    def _redact(self, text: str) -> str:
        """Take the key out of what a server said, should it repeat it."""
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text
