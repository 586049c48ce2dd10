"""The client: asks any OpenAI-compatible endpoint, pays for nothing twice, and loses no answer.

>>> settings = Settings("MODEL", price=Price(0.15, 0.60, date="2026-11-01"), budget=2.0)     # doctest: +SKIP
>>> client = Client(settings, progress=True)                                                 # doctest: +SKIP
>>> client.estimate(prompts)                                                                 # doctest: +SKIP
>>> answers = client.ask(prompts)                                                            # doctest: +SKIP

Replies are kept in a cache (`llm_cache`) before they are returned; recordings (`llm_recordings`) are looked up first. The
client works in a notebook, whose own event loop runs, because it keeps its loop in a thread of its own.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmpp_core.jobs.files import cache_dir
from llmpp_core.jobs.progress import progress_bar
from llmpp_core.llm.answers import Answer, read_answer
from llmpp_core.llm.cache import FILE_NAME, Cache, Stored
from llmpp_core.llm.limits import Budget, Pace, Stop
from llmpp_core.llm.prompts import Prompt
from llmpp_core.llm.run import Counts, Job, Run, Server
from llmpp_core.llm.settings import Price, Settings, estimate_tokens
from llmpp_core.llm.workers import ask_elsewhere, require_free

__all__ = ["Answer", "Client", "Estimate", "LLMStopped", "MissingAnswers", "Price", "Settings"]


class LLMStopped(RuntimeError):
    """A run ended early. Every answer obtained is kept, so asking again asks only for the rest."""


class MissingAnswers(LookupError):
    """Answers are neither recorded nor cached, and the client may not ask.

    Attributes
    ----------
    jobs : list of Job
        What is missing.
    """

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
    cost: float | None
    currency: str

    def __str__(self) -> str:
        cost = "of unknown price" if self.cost is None else f"at most {self.cost:.2f} {self.currency}"
        return (
            f"{self.requests - self.answered:,} requests to send, {self.answered:,} already answered; about {self.prompt_tokens:,} "
            f"tokens sent and at most {self.answer_tokens:,} received, {cost}"
        )


class Client:
    """Asks prompts of one model.

    Parameters
    ----------
    settings : Settings
        The model and the limits of the run.
    cache : pathlib.Path, optional
        The cache file; the user's cache folder by default. Any number of processes may share it.
    recordings : mapping of key to Stored, optional
        Answers to use before anything is asked; see `llm_recordings.load`.
    mode : {"live", "replay"}
        In "replay" nothing is ever sent and no key is needed: what is neither recorded nor cached is an error.
    progress : bool
        Show a bar with answered, invalid and spent, and print a summary.
    executor : concurrent.futures.Executor, optional
        Has the requests asked elsewhere, for a model that costs nothing and that each worker's machine serves itself at `base_url`; see
        `llm_workers`. This process alone keeps the answers.

    Notes
    -----
    Copies are the client itself, so estimators that are cloned share its limits. One that travels to another process (``n_jobs``) has the
    settings, the recordings and the path of the cache, and counts for itself, without an executor; so none may travel whose requests cost
    money or have limits, which several processes could exceed together, unless it only replays.
    """

    def __init__(
        self,
        settings: Settings,
        cache: Path | None = None,
        recordings: Mapping[str, Stored] | None = None,
        mode: str = "live",
        progress: bool = False,
        executor: Executor | None = None,
    ):
        if mode not in ("live", "replay"):
            raise ValueError(f"unknown mode {mode!r}; allowed are live, replay")
        if executor is not None:
            require_free(settings)
        self.executor = executor
        self.settings = settings
        self.mode = mode
        self.progress = progress
        self.counts = Counts()
        self.budget = Budget(settings)
        self._recordings = recordings or {}
        self._given_path = cache
        self._cache: Cache | None = None
        self._pace = Pace(settings)
        self._server = Server()
        self._one_at_a_time = threading.Lock()

    def __copy__(self) -> Client:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Client:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.mode != "replay":
            require_free(self.settings)
        return Client, (self.settings, self._given_path, dict(self._recordings), self.mode, self.progress)

    @property
    def _cache_path(self) -> Path:
        return self._given_path or cache_dir() / FILE_NAME

    @property
    def cache(self) -> Cache:
        """The cache, opened when first needed; for a replay, which writes nothing, only to be read."""
        if self._cache is None:
            self._cache = Cache(self._cache_path, read_only=self.mode == "replay")
        return self._cache

    def job(self, prompt: Prompt, sample: int = 0) -> Job:
        """Return the request for one sample of a prompt."""
        return Job(self.settings.key(prompt, sample), prompt, sample)

    def lookup(self, key: str) -> Stored | None:
        """Return what is recorded or cached under a key, or None."""
        if key in self._recordings:
            return self._recordings[key]
        if self.mode == "replay" and not self._cache_path.exists():
            return None
        return self.cache.get(key)

    def pending(self, prompts: Sequence[Prompt], samples: int = 1) -> list[Job]:
        """Return the requests that are not answered yet, each once."""
        jobs = {job.key: job for prompt in prompts for job in (self.job(prompt, sample) for sample in range(samples))}
        return [job for job in jobs.values() if self.lookup(job.key) is None]

    def estimate(self, prompts: Sequence[Prompt], samples: int = 1) -> Estimate:
        """Return what `ask` would send, without sending anything."""
        jobs = self.pending(prompts, samples)
        sent = sum(estimate_tokens(job.prompt) for job in jobs)
        received = sum(self.settings.answer_tokens * job.prompt.n for job in jobs)
        price = self.settings.price
        requests = len({(prompt, sample) for prompt in prompts for sample in range(samples)})
        cost = price.of(sent, received) if price else None
        return Estimate(requests, requests - len(jobs), sent, received, cost, price.currency if price else "")

    def ask(self, prompts: Sequence[Prompt], samples: int = 1) -> list[tuple[Answer, ...]]:
        """Ask each prompt `samples` times, as far as it is not answered yet.

        Returns
        -------
        list of tuple of Answer
            `samples` answers per prompt, in the order of the prompts. Requests that failed in spite of retries are answers
            with status "failed", as are those that a content filter refused; asking again tries them again.

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
        pending = self.pending(prompts, samples)
        failures = self._obtain(pending, self._known(prompts, samples, pending)) if pending else {}
        jobs = [[self.job(prompt, sample) for sample in range(samples)] for prompt in prompts]
        return [tuple(self._answer(job, failures) for job in row) for row in jobs]

    def _known(self, prompts: Sequence[Prompt], samples: int, pending: Sequence[Job]) -> list[Answer]:
        """Return the answers that are there already."""
        asked = {job.key for job in pending}
        jobs = {job.key: job for prompt in prompts for job in (self.job(prompt, sample) for sample in range(samples))}
        return [self._answer(job, {}) for job in jobs.values() if job.key not in asked]

    def _answer(self, job: Job, failures: Mapping[str, str]) -> Answer:
        if job.key in failures:
            return Answer(job.key, (float("nan"),) * job.prompt.n, "failed", failures[job.key])
        stored = self.lookup(job.key)
        assert stored is not None  # It was in the cache when the run ended.
        return read_answer(job.prompt, job.key, stored.response, stored.seconds)

    def _obtain(self, jobs: list[Job], known: list[Answer]) -> dict[str, str]:
        """Ask for all jobs; returns why some failed, by key."""
        if self.mode == "replay":
            first = jobs[0].prompt.query.splitlines()[0]
            raise MissingAnswers(f"{len(jobs)} answers of {self.settings.model} are not recorded, the first: {jobs[0].key} ({first})", jobs)
        self.settings.require_limit()
        with self._one_at_a_time, progress_bar(total=len(jobs), disable=not self.progress, unit="request") as bar:

            def show_progress() -> None:
                bar.set_postfix(answered=self.counts.answered, invalid=self.counts.invalid, spent=self._spent(), refresh=False)
                bar.update()

            run = Run(self.settings, self.cache, self.budget, self._pace, self.counts, show_progress, self._server, known)
            started = time.perf_counter()
            try:
                if self.executor is not None:
                    return ask_elsewhere(
                        self.settings, self.cache, jobs, self.executor, self.counts, self.budget, show_progress, self._server
                    )
                _in_thread(run, jobs, canary=self.counts.answered == self.counts.invalid)
            except Stop as stop:
                left = sum(self.lookup(job.key) is None for job in jobs)
                where = f"{self.settings.model} at {self.settings.base_url}"
                raise LLMStopped(f"{where}: {stop} ({len(jobs) - left} of {len(jobs)} requests answered and kept)") from None
            finally:
                while self._server.notes:
                    warnings.warn(self._server.notes.pop(0), stacklevel=3)
                self.counts.seconds += time.perf_counter() - started
                if self.progress:
                    tqdm.write(self.summary())
        return run.failures

    def _spent(self) -> str:
        spent = self.budget.spent
        if spent is None:
            return f"{self.budget.prompt_tokens + self.budget.answer_tokens:,} tokens"
        return f"{spent:.4f} {self.settings.price.currency if self.settings.price else ''}"

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
    errors: list[BaseException] = []
    # Not Thread.join: before Python 3.13 an interrupted join takes the thread for ended.
    ended = threading.Event()

    def work() -> None:
        try:
            run.settle(jobs, canary)
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=work, name="llm", daemon=True).start()
    try:
        ended.wait()
    except KeyboardInterrupt:
        run.stop("interrupted")
        ended.wait()
        raise
    if errors:
        raise errors[0]
