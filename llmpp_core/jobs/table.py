"""Tables of rows that jobs, on any executor, add to a JSONL file, stopped and resumed at will."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection, parent_process
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from llmpp_core.jobs.files import alone, append_rows, need_writable, read_rows, to_json
from llmpp_core.jobs.progress import progress_bar


class JobsLost(RuntimeError):
    """Jobs could not be run to the end for want of those who run them; the message is one line."""


class Table:
    """A JSONL file that grows by rows which were all made from the same.

    One process at a time adds to it, under a lock beside the file. A row is on the disk once it is added, so what is killed at any moment
    goes on. What reads rows raises ValueError, naming file and line, if one is damaged or made from something else.

    Parameters
    ----------
    path : path
        The file; absent, the table is empty.
    made_from : mapping, optional
        What JSON can hold: names of columns and what they are in every row, such as data and settings. Rows get it when they are added.
    earlier : mapping, optional
        What is meant by rows, and fields of `made_from`, that do not say: those of a time when there was nothing else.
    """

    def __init__(self, path: str | Path, made_from: Mapping[str, Any] | None = None, earlier: Mapping[str, Any] | None = None):
        self.path, self.made_from, self.earlier = Path(path), json.loads(to_json(made_from or {})), json.loads(to_json(earlier or {}))
        self._writing = False

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as they are in the file; a last one cut off by a crash is left out."""
        found, here = read_rows(self.path), _filled(self.made_from, self.earlier)
        for number, row in enumerate(found, 1):
            there = _filled(row, self.earlier)
            if different := differences({name: there.get(name) for name in self.made_from}, {name: here[name] for name in self.made_from}):
                raise ValueError(f"{self.path}:{number}: made from something else: {different}; move the file away")
        return found

    def frame(self, how: str = "") -> Any:
        """Return the rows as a pandas.DataFrame; ValueError if there are none, which then says `how` to get them."""
        import pandas as pd

        if not (rows := self.rows()):
            raise ValueError(f"{self.path} is not there or empty{f'; measure it with: {how}' if how else ''}")
        return pd.DataFrame(rows)

    def given_up(self) -> list[dict[str, Any]]:
        """Return the rows of jobs that were given up: their column "diverged" says why."""
        return [row for row in self.rows() if row.get("diverged") is not None]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep others from adding rows meanwhile; ValueError if one does, or nothing can be written there."""
        if self._writing:
            yield
            return
        need_writable(self.path)
        with alone(self.path):
            self._writing = True
            try:
                yield
            finally:
                self._writing = False

    def append(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Add rows and return them with what they were made from; raises as `writing` and `append_rows`."""
        # As they will be read, so that it makes no difference whether a row was made now or before.
        added = [json.loads(to_json({**row, **self.made_from})) for row in rows]
        with self.writing():
            append_rows(self.path, added)
        return added

    def run(
        self,
        work: Callable[..., Mapping[str, Any] | None],
        jobs: Iterable[tuple[Mapping[str, Any], tuple[Any, ...]]],
        *,
        executor: Executor | None = None,
        progress: str | None = None,
        written: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Run the jobs that the table has no row of yet, add each row as soon as it is there, and return those done in the order of `jobs`.

        Parameters
        ----------
        work : callable
            Called with the arguments of a job; returns the rest of its row, or None if it is to be run again another time.
        jobs : iterable of (mapping, tuple)
            Key and arguments of each job. The key is the beginning of its row and tells whether the job is done.
        executor : concurrent.futures.Executor, optional
            Runs the jobs, by default this process, one after the other. A cluster runs those of a lost worker again.
        progress : str, optional
            Title of a progress bar.
        written : callable, optional
            Called here with each row once it is on the disk; may remove what could have made it again.

        Raises
        ------
        ValueError
            If two jobs have the same key, or as `writing`.
        Exception
            What a job raised, once the jobs under way are over and their rows written (a cluster gives those up, to be run again).
        JobsLost
            If the executor gave jobs up by itself.
        """
        listed = list(jobs)
        named = {_hashable(key): (key, arguments) for key, arguments in listed}
        if len(named) < len(listed):
            raise ValueError("jobs: two have the same key")
        fields = tuple(listed[0][0]) if listed else ()

        def rows() -> dict[str, dict[str, Any]]:
            return {_hashable({name: row.get(name) for name in fields}): row for row in self.rows()}

        done = rows()
        if not named.keys() <= done.keys():
            with self.writing():
                done = rows()
                waiting = [(name, arguments) for name, (_, arguments) in named.items() if name not in done]
                began = len(named) - len(waiting)
                with progress_bar(total=len(named), initial=began, desc=progress, disable=progress is None) as bar:
                    for name, result in results(work, waiting, executor):
                        if result is not None:
                            (done[name],) = self.append([{**named[name][0], **result}])
                            if written is not None:
                                written(done[name])
                            bar.update()
        return [done[name] for name in named if name in done]


def differences(there: Any, here: Any, name: str = "") -> str:
    """Say in one line in which leaves two nested mappings differ; "" if they do not."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        parts = (differences(there.get(key), here.get(key), f"{name}.{key}".strip(".")) for key in dict.fromkeys([*there, *here]))
        return "; ".join(filter(None, parts))
    return "" if there == here else f"{name} is {_short(there)} there and {_short(here)} here"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _filled(value: Any, earlier: Any) -> Any:
    """Return nested mappings with what `earlier` has in the places that they say nothing of."""
    if not (isinstance(value, Mapping) and isinstance(earlier, Mapping)):
        return value
    return {**earlier, **{name: _filled(part, earlier.get(name)) for name, part in value.items()}}


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
    """Yield name and result of each job, named tuples of arguments, in the order in which they are done; raises as `Table.run`."""
    if executor is None:
        yield from ((name, work(*arguments)) for name, arguments in jobs)
        return
    pending: dict[str, Future[Any]] = {}
    arrived: SimpleQueue[tuple[str, bool, BaseException | None, Any]] = SimpleQueue()

    def take(name: str, future: Future[Any]) -> None:
        # At once, and without keeping the future: what somebody holds a cluster computes again when the worker it was made by is lost.
        pending.pop(name, None)
        cancelled = future.cancelled()
        error = None if cancelled else future.exception()
        arrived.put((name, cancelled, error, None if cancelled or error else future.result()))

    failure: BaseException | None = None
    submitted = 0
    try:
        for name, arguments in jobs:
            try:
                pending[name] = executor.submit(work, *arguments)
            except RuntimeError as broken:
                # Meanwhile, or shut down; what is finished is to be kept all the same.
                failure = broken
                break
            pending[name].add_done_callback(partial(take, name))
            submitted += 1
        for _ in range(submitted):
            name, cancelled, error, result = arrived.get()
            if not cancelled and error is None:
                yield name, result
            elif failure is None:
                gave_up = "the executor gave up jobs, as when the connection to a cluster is lost; what is finished is kept"
                failure = error or JobsLost(gave_up)
                for other in list(pending.values()):
                    other.cancel()
    finally:
        for other in list(pending.values()):
            other.cancel()
    if failure is not None:
        raise failure


def _hashable(key: Mapping[str, Any]) -> str:
    return json.dumps(json.loads(to_json(key)), sort_keys=True)
