"""Many independent jobs whose results are rows of one JSONL file, on any executor, stopped and resumed at will."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from multiprocessing import connection, parent_process
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from llmpp_core.jobs.files import alone, append_rows, need_writable, read_rows
from llmpp_core.jobs.progress import progress_bar


class JobsLost(RuntimeError):
    """Jobs could not be run to the end for want of those who run them; the message is one line."""


def run_jobs(
    work: Callable[..., Mapping[str, Any] | None],
    jobs: Iterable[tuple[Mapping[str, Any], tuple[Any, ...]]],
    path: Path,
    *,
    executor: Executor | None = None,
    progress: str | None = None,
    receive: Callable[[dict[str, Any]], None] | None = None,
    written: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Run the jobs that `path` has no row of yet.

    This process alone writes the file, a row as soon as its job is done, so a crash at any moment loses only jobs under way.

    Parameters
    ----------
    work : callable
        Called with the arguments of a job; returns the rest of its row, or None if it is to be run again another time.
    jobs : iterable of (mapping, tuple)
        Key and arguments of each job. The key is the beginning of its row and tells whether the job is done.
    path : path
        The JSONL file.
    executor : concurrent.futures.Executor, optional
        Runs the jobs; without one they run here, one after the other. That of a cluster (see `llmpp_core.jobs.cluster`) runs a job again
        whose worker was lost.
    progress : str, optional
        Title of a progress bar.
    receive : callable, optional
        Called here with each row before it is written; takes out of it what is no part of the table, such as the bytes of a file.
    written : callable, optional
        Called here with each row once it is on the disk; may remove what could have made it again.

    Returns
    -------
    list of dict
        The rows of all jobs that are done, in the order of `jobs`.

    Raises
    ------
    ValueError
        If two jobs have the same key, the file is damaged or cannot be written, or another process is adding to it.
    Exception
        What a job raised, once the jobs under way are over and their rows written. An executor that does not tell which jobs are
        under way, as that of a cluster, gives those up as well, to be run again.
    JobsLost
        If the executor gave jobs up by itself.
    """
    listed = list(jobs)
    keys = [_hashable(key) for key, _ in listed]
    if len(set(keys)) < len(keys):
        raise ValueError("jobs: two have the same key")
    fields = [tuple(key) for key, _ in listed][:1]
    named = {key: dict(given) for key, (given, _) in zip(keys, listed, strict=True)}
    with alone(path):
        done = {_hashable({name: row.get(name) for name in fields[0]}): row for row in read_rows(path)} if fields else {}
        open_ = [(key, arguments) for key, (_, arguments) in zip(keys, listed, strict=True) if key not in done]
        if open_:
            need_writable(path)
        with progress_bar(total=len(listed), initial=len(listed) - len(open_), desc=progress, disable=progress is None) as bar:
            for key, result in results(work, open_, executor):
                if result is not None:
                    done[key] = {**named[key], **result}
                    if receive is not None:
                        receive(done[key])
                    append_rows(path, [done[key]])
                    if written is not None:
                        written(done[key])
                    bar.update()
    return [done[key] for key in keys if key in done]


def end_with_parent() -> None:
    """Make this process end when the one that started it is gone, however it went; the initializer of a pool of processes.

    Without it the workers of a process that was killed finish their jobs and then wait for others for ever.
    """
    parent = parent_process()
    if parent is None:
        return

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def results(work: Callable[..., Any], jobs: Sequence[tuple[str, tuple[Any, ...]]], executor: Executor | None) -> Iterator[tuple[str, Any]]:
    """Yield name and result of each job, named pairs of arguments, in the order in which they are done; raises as `run_jobs`."""
    if executor is None:
        yield from ((key, work(*arguments)) for key, arguments in jobs)
        return
    pending: dict[str, Future[Any]] = {}
    arrived: SimpleQueue[tuple[str, bool, BaseException | None, Any]] = SimpleQueue()

    def take(key: str, future: Future[Any]) -> None:
        # At once, and without keeping the future: what somebody holds a cluster computes again when the worker it was made by is lost.
        pending.pop(key, None)
        cancelled = future.cancelled()
        error = None if cancelled else future.exception()
        arrived.put((key, cancelled, error, None if cancelled or error else future.result()))

    failure: BaseException | None = None
    try:
        for key, arguments in jobs:
            pending[key] = executor.submit(work, *arguments)
            pending[key].add_done_callback(partial(take, key))
        for _ in jobs:
            key, cancelled, error, result = arrived.get()
            if not cancelled and error is None:
                yield key, result
            elif failure is None:
                failure = error or JobsLost(
                    "the executor gave up jobs, as when the connection to a cluster is lost; what is finished is kept"
                )
                for other in list(pending.values()):
                    other.cancel()
    finally:
        for other in list(pending.values()):
            other.cancel()
    if failure is not None:
        raise failure


#: What was sent to this worker of a cluster by `llmpp_core.jobs.cluster.sent`, by its name or path where it came from.
parcels: dict[str, Any] = {}


def here(value: Any) -> Any:
    """Return what was sent to the machine that runs this job in place of a path or name, or the path or name itself."""
    return parcels.get(str(value), value) if isinstance(value, (str, Path)) else value


def _hashable(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
