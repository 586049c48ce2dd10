"""Requests asked by other processes or machines, for a model that each of them serves itself; the cache stays with one process.

For a model behind a network there is nothing to gain: one process keeps hundreds of requests in flight, and its budget and rate limits
hold for all of them. A model that runs where the worker runs, on each machine of a cluster, is another matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from llmpp_core.jobs.table import results
from llmpp_core.llm.cache import Cache, CacheError, Stored
from llmpp_core.llm.limits import Budget, Pace, Stop
from llmpp_core.llm.run import Counts, Job, Run, Server
from llmpp_core.llm.settings import Settings

# Requests that travel together; what a lost worker has to ask again.
_TOGETHER = 50


class Asked(NamedTuple):
    """What a worker brings back: responses and reasons of failures by key, what happened, tokens used, why it stopped early, and notes."""

    answers: dict[str, Stored]
    failures: dict[str, str]
    counts: Counts
    tokens: tuple[int, int]
    stopped: str
    notes: list[str]


def require_free(settings: Settings) -> None:
    """Raise ValueError if requests cost money or have a rate limit, which several processes could not keep together."""
    limited = settings.requests_per_minute or settings.tokens_per_minute or settings.token_cap is not None
    if limited or not settings.is_free:
        raise ValueError(
            f"{settings.model} costs money or has limits, which only one process can keep: leave out the executor, use n_jobs=1; "
            "one process keeps as many requests in flight as `concurrency` says"
        )


def ask_here(settings: Settings, jobs: Sequence[Job]) -> Asked:
    """Ask some requests in this process, whose cache is only in memory."""
    cache, budget, counts, server, stopped = Cache(Path(":memory:")), Budget(settings), Counts(), Server(), ""
    run = Run(settings, cache, budget, Pace(settings), counts, lambda: None, server)
    try:
        run.settle(jobs, canary=True)
    except Stop as stop:
        stopped = str(stop)
    found = {job.key: stored for job in jobs if (stored := cache.get(job.key))}
    return Asked(found, run.failures, counts, (budget.prompt_tokens, budget.answer_tokens), stopped, server.notes)


def ask_elsewhere(
    settings: Settings,
    cache: Cache,
    jobs: Sequence[Job],
    executor: Executor,
    counts: Counts,
    budget: Budget,
    on_settled: Callable[[], None],
    server: Server,
) -> dict[str, str]:
    """Have requests asked by an executor and keep the answers as they come in; returns reasons of failures by key, raises Stop."""
    by_key, failures, groups = {job.key: job for job in jobs}, dict[str, str](), range(0, len(jobs), _TOGETHER)
    for _, asked in results(ask_here, [(str(i), (settings, jobs[i : i + _TOGETHER])) for i in groups], executor):
        try:
            for key, stored in asked.answers.items():
                cache.put(key, settings.identity(), by_key[key].prompt, by_key[key].sample, stored)
        except CacheError as error:
            raise Stop(str(error)) from None
        for name in ("requests", "answered", "invalid", "failed", "retries", "estimated"):
            setattr(counts, name, getattr(counts, name) + getattr(asked.counts, name))
        budget.settle((0, 0), asked.tokens)
        for _ in (*asked.answers, *asked.failures):
            on_settled()
        failures |= asked.failures
        for note in asked.notes:
            server.note(note, note)
        if asked.stopped:
            raise Stop(asked.stopped)
    return failures
