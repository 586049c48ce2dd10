"""The asynchronous core of the client: settles a list of requests against one server inside one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llmpp_core.llm_answers import Answer, Reply, read_answer, read_reply
from llmpp_core.llm_cache import Cache, CacheError, Stored
from llmpp_core.llm_faults import Failure, judge
from llmpp_core.llm_limits import Budget, Pace, Stop
from llmpp_core.llm_settings import Settings, estimate_tokens, fewest_tokens
from llmpp_core.prompts import Prompt

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


class Run:
    """Settles jobs: each ends with its response in the cache, as a failure, or pending if the run stops.

    Parameters
    ----------
    settings, cache, budget, pace, counts
        Of the client; they outlive the run.
    on_settled : callable
        Called after each job that was answered or has failed.

    Attributes
    ----------
    failures : dict
        Why jobs failed, by key.
    stopped : str
        Why the run stopped early, else "".
    """

    def __init__(self, settings: Settings, cache: Cache, budget: Budget, pace: Pace, counts: Counts, on_settled: Callable[[], None]):
        self.settings, self.cache, self.budget, self.pace, self.counts = settings, cache, budget, pace, counts
        self.on_settled = on_settled
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
            async with self._connect() as self._http:
                if canary:
                    await self._work(queue, canary=True)
                workers = [self._work(queue) for _ in range(min(self.settings.concurrency, len(queue)))]
                for outcome in await asyncio.gather(*workers, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
        except Stop as stop:
            self.stop(str(stop))
        finally:
            renewal.cancel()
            self._http, self._key = None, ""
            with contextlib.suppress(CacheError):
                self.cache.release()

    def _connect(self) -> Any:
        # Imported here: replaying recordings needs neither the package nor the second that importing it takes.
        import openai

        name = self.settings.key_variable
        self._key = os.environ.get(name, "").strip() if name else ""
        if name and not self._key and not self.settings.is_loopback:
            raise Stop(f"no key: set the environment variable {name}")
        # A stray line break would make the HTTP library quote the key in its complaint.
        if not all("!" <= character <= "~" for character in self._key):
            raise Stop(f"the key in the environment variable {name} holds white space or characters that no key has")
        return openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.settings.base_url,
            max_retries=0,
            timeout=self.settings.deadline,
            http_client=openai.DefaultAsyncHttpxClient(
                trust_env=not self.settings.is_loopback,
                # A redirect means a wrong URL; following it could hand prompts, or the key, to another host.
                follow_redirects=False,
                # Loading certificates takes longer than asking a local server.
                verify=self.settings.base_url.startswith("https"),
            ),
        )

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(self.cache.lease / 3)
            with contextlib.suppress(CacheError):  # If the disk is full, the next answer says so.
                self.cache.renew()

    def _check_canary(self, job: Job, others: bool) -> None:
        if job.key in self.failures:
            raise Stop(f"the first request failed: {self.failures[job.key]}")
        if others and not self.stopped and (stored := self.cache.get(job.key)):
            answer = read_answer(job.prompt, job.key, stored.response)
            if answer.status == "invalid":
                raise Stop(f"the first answer is invalid, {answer.reason}; it is kept and nothing else was sent: run again to go on")

    async def _work(self, queue: deque[Job], canary: bool = False) -> None:
        claimed_elsewhere = 0
        try:
            while queue and not self.stopped:
                job = queue.popleft()
                claim = self.cache.claim(job.key)
                if claim == "answered":  # By another process, since this one looked.
                    self.on_settled()
                elif claim == "claimed":
                    await self._settle_one(job)
                    if canary:
                        self._check_canary(job, bool(queue))
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

    async def _settle_one(self, job: Job) -> None:
        self.counts.requests += 1
        for attempt in range(self.settings.retries + 1):
            self.counts.retries += attempt > 0
            outcome = await self._attempt(job)
            if isinstance(outcome, Answer):
                self._failures_in_a_row = 0
                self.counts.answered += 1
                self.counts.invalid += outcome.status == "invalid"
                self.on_settled()
                return
            if not outcome.again:
                break
            await self._wait_before_retry(outcome, attempt)
            if self.stopped:
                return
        self.cache.release(job.key)
        self.failures[job.key] = self._redact(outcome.reason)
        self.counts.failed += 1
        self.on_settled()
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.settings.max_failures:
            raise Stop(f"{self._failures_in_a_row} requests failed in a row, the last one: {outcome.reason}")

    async def _attempt(self, job: Job) -> Answer | Failure:
        """Make one call and charge for it; an answer is in the cache when this returns."""
        estimate = estimate_tokens(job.prompt)
        aside = (math.ceil(estimate * self.budget.tokens_per_estimate), self.settings.answer_tokens * job.prompt.n)
        await self._admit(*aside)
        used = (0, 0)
        try:
            await self._keep_pace(sum(aside))
            started = time.perf_counter()
            raw = await self._call(job)
            seconds = round(time.perf_counter() - started, 3)
            reply = read_reply(raw)
            used = self._usage(reply, aside)
            self.budget.tokens_per_estimate = max(self.budget.tokens_per_estimate, used[0] / estimate)
            self._check_prompt_arrived(job, reply)
            if reply.finish_reason == "length" and not reply.text.strip():
                advice = "raise answer_tokens or lower reasoning_effort"
                return Failure(f"all {aside[1]} tokens allowed went on reasoning, none on the answer: {advice}", again=False)
            self.cache.put(job.key, self.settings.identity(), job.prompt, job.sample, Stored(raw, seconds))
            return read_answer(job.prompt, job.key, raw, seconds)
        except (Stop, CacheError):
            raise
        except Exception as error:
            failure = judge(error)
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
        body = self.settings.body(job.prompt)
        create = self._http.chat.completions.with_raw_response.create
        call = create(model=body.pop("model"), messages=body.pop("messages"), extra_body=body)
        # The package's own timeout starts anew with every byte, so a dripping server would never run into it.
        response = await asyncio.wait_for(call, self.settings.deadline)
        return self._redact(response.http_response.text)

    def _usage(self, reply: Reply, aside: tuple[int, int]) -> tuple[int, int]:
        free = self.settings.price is not None and self.settings.price.of(1, 1) == 0
        if reply.prompt_tokens is None or reply.answer_tokens is None or (reply.prompt_tokens == 0 and not free):
            self.counts.estimated += 1
            return aside
        return reply.prompt_tokens, reply.answer_tokens

    def _check_prompt_arrived(self, job: Job, reply: Reply) -> None:
        if reply.prompt_tokens and reply.prompt_tokens < (fewest := fewest_tokens(job.prompt)):
            raise Stop(
                f"the server counted {reply.prompt_tokens} tokens in a prompt of {fewest} words and numbers, so it cut the prompt: "
                "raise its context length (num_ctx in Ollama)"
            )

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
