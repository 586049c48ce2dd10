"""Many independent jobs whose results are rows of one JSONL file, on any executor, stopped and resumed at will."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from multiprocessing import connection, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from tqdm import tqdm

from llmpp_core.files import append_rows, read_rows


def run_jobs(
    work: Callable[..., Mapping[str, Any] | None],
    jobs: Iterable[tuple[Mapping[str, Any], tuple[Any, ...]]],
    path: Path,
    *,
    executor: Executor | None = None,
    progress: str | None = None,
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
        Runs the jobs; without one they run here, one after the other.
    progress : str, optional
        Title of a progress bar.

    Returns
    -------
    list of dict
        The rows of all jobs that are done, in the order of `jobs`.

    Raises
    ------
    ValueError
        If two jobs have the same key, or the file is damaged.
    Exception
        What a job raised, once the jobs under way are over and their rows written.
    """
    listed = list(jobs)
    keys = [_hashable(key) for key, _ in listed]
    if len(set(keys)) < len(keys):
        raise ValueError("jobs: two have the same key")
    fields = [tuple(key) for key, _ in listed][:1]
    done = {_hashable({name: row.get(name) for name in fields[0]}): row for row in read_rows(path)} if fields else {}
    open_ = [(key, arguments) for key, (_, arguments) in zip(keys, listed, strict=True) if key not in done]
    named = {key: dict(given) for key, (given, _) in zip(keys, listed, strict=True)}
    with tqdm(total=len(listed), initial=len(listed) - len(open_), desc=progress, disable=progress is None) as bar:
        for key, result in _results(work, open_, executor):
            if result is not None:
                done[key] = {**named[key], **result}
                append_rows(path, [done[key]])
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


def _results(work: Callable[..., Any], jobs: Sequence[tuple[str, tuple[Any, ...]]], executor: Executor | None) -> Any:
    if executor is None:
        yield from ((key, work(*arguments)) for key, arguments in jobs)
        return
    pending: dict[Future[Any], str] = {executor.submit(work, *arguments): key for key, arguments in jobs}
    failure: BaseException | None = None
    try:
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                key = pending.pop(future)
                if future.cancelled():
                    continue
                if future.exception() is None:
                    yield key, future.result()
                elif failure is None:
                    failure = future.exception()
                    for other in pending:
                        other.cancel()
    finally:
        for future in pending:
            future.cancel()
    if failure is not None:
        raise failure


def _hashable(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
