"""The client: asks any OpenAI-compatible endpoint, pays for nothing twice, and loses no answer.

``Client(Settings("MODEL", price=Price(0.15, 0.60, date="2026-11-01"), budget=2.0)).ask(prompts)`` looks recordings up first, and keeps what
it is answered in a cache before it returns it. It works in a notebook, whose own event loop runs, since its loop has a thread of its own.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmpp_core.jobs.files import cache_dir
from llmpp_core.jobs.progress import progress_bar
from llmpp_core.llm.answers import Answer, read_answer
from llmpp_core.llm.cache import FILE_NAME, Cache, Stored
from llmpp_core.llm.limits import Budget, Pace, Share, Stop
from llmpp_core.llm.prompts import Prompt
from llmpp_core.llm.run import Counts, Job, Run
from llmpp_core.llm.settings import FREE, Price, Settings, estimate_tokens

__all__ = ["Client", "Estimate", "LLMStopped", "MissingAnswers", "Price", "Settings"]


class LLMStopped(RuntimeError):
    """A run ended early. Every answer obtained is kept, so asking again asks only for the rest."""


class MissingAnswers(LookupError):
    """Answers, those to `jobs`, are neither recorded nor cached, and the client may not ask."""

    def __init__(self, message: str, jobs: list[Job]):
        super().__init__(message)
        self.jobs = jobs


@dataclass(frozen=True)
class Estimate:
    """What asking would take: requests, how many of them are answered already, and the worst case of tokens and money."""

    requests: int
    answered: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None  #: None where the price is unknown.
    currency: str

    def __str__(self) -> str:
        # Rounded up: 0.001 is not "at most 0.00".
        cost = "of unknown price" if self.cost is None else f"at most {math.ceil(100 * self.cost) / 100:.2f} {self.currency}"
        return (
            f"{self.requests - self.answered:,} requests to send, {self.answered:,} already answered; about {self.prompt_tokens:,} "
            f"tokens sent and at most {self.answer_tokens:,} received, {cost}"
        )


class Client:
    """Asks prompts of one model.

    Copies are the client itself, so estimators that are cloned share its limits. One that travels to another process (``n_jobs``) has the
    settings, the recordings and the path of the cache, and counts for itself; so none may travel whose requests cost money or have limits,
    which several processes could exceed together, unless it only replays.

    Parameters
    ----------
    settings : Settings
        The model and the limits of the run.
    cache : pathlib.Path, optional
        The cache file; the user's cache folder by default. Any number of processes of one machine may share it.
    recordings : mapping of key to Stored, optional
        Answers to use before anything is asked; see `llmpp_core.llm.recordings.load`.
    mode : {"live", "replay"}
        In "replay" nothing is ever sent and no key is needed: what is neither recorded nor cached is an error.
    progress : bool
        Show a bar with answered, invalid and spent, and print a summary.
    """

    def __init__(
        self,
        settings: Settings,
        cache: Path | None = None,
        recordings: Mapping[str, Stored] | None = None,
        mode: str = "live",
        progress: bool = False,
    ):
        if mode not in ("live", "replay"):
            raise ValueError(f"unknown mode {mode!r}; allowed are live, replay")
        self.settings = settings
        self.mode = mode
        self.progress = progress
        self.counts = Counts()
        self.budget = Budget(settings)
        self._recordings = recordings or {}
        self._given_path = cache
        self._cache: Cache | None = None
        self._jobs: dict[tuple[Prompt, int], Job] = {}
        self._pace = Pace(settings)
        self._one_at_a_time = threading.Lock()

    def __copy__(self, memo: Any = None) -> Client:
        return self

    __deepcopy__ = __copy__

    def __reduce__(self) -> tuple[Any, ...]:
        given = self.settings
        limited = given.requests_per_minute or given.tokens_per_minute or given.token_cap is not None or not given.is_free
        if self.mode != "replay" and limited:
            raise ValueError(
                f"{given.model} costs money or has limits, which only one process can keep: use n_jobs=1; one process keeps as many "
                "requests in flight as `concurrency` says"
            )
        return Client, (given, self._given_path, dict(self._recordings), self.mode, self.progress)

    @property
    def cache(self) -> Cache:
        """The cache, opened when first needed; for a replay, which writes nothing, only to be read."""
        if self._cache is None:
            self._cache = Cache(self._given_path or cache_dir() / FILE_NAME, read_only=self.mode == "replay")
        return self._cache

    def job(self, prompt: Prompt, sample: int = 0) -> Job:
        """Return the request for one sample of a prompt, whose key is computed once."""
        if (prompt, sample) not in self._jobs:
            self._jobs[prompt, sample] = Job(self.settings.key(prompt, sample), prompt, sample)
        return self._jobs[prompt, sample]

    def lookup(self, key: str) -> Stored | None:
        """Return what is recorded or cached under a key, or None."""
        return self._recordings[key] if key in self._recordings else self.cache.get(key)

    def _distinct(self, prompts: Sequence[Prompt], samples: int) -> dict[str, Job]:
        return {job.key: job for prompt in prompts for job in (self.job(prompt, sample) for sample in range(samples))}

    def pending(self, prompts: Sequence[Prompt], samples: int = 1) -> list[Job]:
        """Return the requests that are not answered yet, each once."""
        return [job for job in self._distinct(prompts, samples).values() if self.lookup(job.key) is None]

    def estimate(self, prompts: Sequence[Prompt], samples: int = 1) -> Estimate:
        """Return what `ask` would send, without sending anything."""
        requests, pending = len(self._distinct(prompts, samples)), self.pending(prompts, samples)
        sent = sum(estimate_tokens(job.prompt) for job in pending)
        received = sum(self.settings.answer_tokens * job.prompt.n for job in pending)
        price = self.settings.price or (FREE if self.settings.is_free else None)
        cost, currency = (price.of(sent, received), price.currency) if price else (None, "")
        return Estimate(requests, requests - len(pending), sent, received, cost, currency)

    def ask(self, prompts: Sequence[Prompt], samples: int = 1) -> list[tuple[Answer, ...]]:
        """Ask each prompt as often as `samples` says, as far as it is not answered yet.

        Returns
        -------
        list of tuple of Answer
            One tuple per prompt, in their order. Requests that failed in spite of retries, or that a content filter refused, are answers
            with status "failed"; asking again tries them again.

        Raises
        ------
        LLMStopped
            If the run had to stop: bad key or model, no server, nothing but failures, mostly invalid answers, the budget, a full disk.
        MissingAnswers
            In the mode "replay", if an answer is missing.
        ValueError
            If nothing limits the cost of a live run.
        """
        if samples < 1:
            raise ValueError(f"samples: expected at least 1, got {samples}")
        prompts = list(prompts)
        pending = {job.key: job for job in self.pending(prompts, samples)}
        found = {key: self._read(job) for key, job in self._distinct(prompts, samples).items() if key not in pending}
        failures = self._obtain(list(pending.values()), list(found.values())) if pending else {}
        for key, job in pending.items():
            failed = Answer(key, (float("nan"),) * job.prompt.n, "failed", failures.get(key, ""))
            found[key] = failed if key in failures else self._read(job)
        return [tuple(found[self.job(prompt, sample).key] for sample in range(samples)) for prompt in prompts]

    def _read(self, job: Job) -> Answer:
        stored = self.lookup(job.key)
        assert stored is not None
        return read_answer(job.prompt, job.key, stored.response, stored.seconds)

    def _obtain(self, jobs: list[Job], known: list[Answer]) -> dict[str, str]:
        """Ask for all jobs, given the answers to their like that are there; returns why some failed, by key."""
        if self.mode == "replay":
            first = jobs[0].prompt.query.splitlines()[0]
            raise MissingAnswers(f"{len(jobs)} answers of {self.settings.model} are not recorded, the first: {jobs[0].key} ({first})", jobs)
        self.settings.require_limit()
        with self._one_at_a_time, progress_bar(total=len(jobs), disable=not self.progress, unit="request") as bar:

            def show_progress() -> None:
                bar.set_postfix(answered=self.counts.answered, invalid=self.counts.invalid, spent=self._spent(), refresh=False)
                bar.update()

            share = Share(self.settings, known)
            run = Run(self.settings, self.cache, self.budget, self._pace, self.counts, share, show_progress)
            started = time.perf_counter()
            try:
                _in_thread(run, jobs, canary=self.counts.answered == self.counts.invalid)
            except Stop as stop:
                left = sum(self.lookup(job.key) is None for job in jobs)
                where = f"{self.settings.model} at {self.settings.base_url}"
                raise LLMStopped(f"{where}: {stop} ({len(jobs) - left} of {len(jobs)} requests answered and kept)") from None
            finally:
                for kind, note in self.counts.notes.items():
                    if note:
                        self.counts.notes[kind] = ""
                        warnings.warn(note, stacklevel=3)
                self.counts.seconds += time.perf_counter() - started
                if self.progress:
                    tqdm.write(self.summary())
        return run.failures

    def _spent(self) -> str:
        if self.settings.price is None:
            return f"{self.budget.prompt_tokens + self.budget.answer_tokens:,} tokens"
        return f"{self.budget.spent:.4f} {self.settings.price.currency}"

    def summary(self) -> str:
        """Return one line that says what happened so far and what it cost."""
        counts, budget = self.counts, self.budget
        flagged = f", {counts.estimated} calls charged by estimate" if counts.estimated else ""
        return (
            f"{self.settings.model}: {counts.requests} requests, {counts.answered} answered, {counts.invalid} of them invalid, "
            f"{counts.failed} failed, {counts.retries} retries, {budget.prompt_tokens:,} + {budget.answer_tokens:,} tokens, "
            f"spent {self._spent()}{flagged}, {counts.seconds:.1f} s"
        )


def _in_thread(run: Run, jobs: list[Job], canary: bool) -> None:
    """Settle jobs in a thread with an event loop of its own; on Ctrl-C wait for the calls in flight, on a second one do not."""
    ended: Future[None] = Future()

    def work() -> None:
        try:
            ended.set_result(run.settle(jobs, canary))  # type: ignore[func-returns-value]
        except BaseException as error:
            ended.set_exception(error)

    # Not an executor's: a second Ctrl-C would wait for that at the end of the process.
    threading.Thread(target=work, name="llm", daemon=True).start()
    try:
        ended.result()
    except KeyboardInterrupt:
        run.stop("interrupted")
        wait([ended])
        raise
