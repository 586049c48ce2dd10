"""Run the book's notebooks: in dependency order, in parallel, only what changed, and so that a killed run goes on.

Each notebook runs in a process of its own, because papermill changes the working directory and because a run that is
killed for want of memory must not take the others along. Only a finished page enters ``book/notebooks``, in one step;
its record follows, so that a page without a matching record is never taken for a result.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import joblib

from llmpp_book.errors import InputError
from llmpp_book.runner.console import Console
from llmpp_book.runner.notebook import Notebook, Paths, project_state, read, stored_page, write_atomically
from llmpp_book.runner.plan import Job, plan, read_notebooks, select
from llmpp_book.runner.scorecard import read_claims, scorecard_page
from llmpp_book.runner.status import DONE, FAILED, NOT_RUN, STORED, Record, duration, read_record, status_page, write_record
from llmpp_book.runner.worker import Failure, Finished, Task, work
from llmpp_core.jobs.files import need_writable
from llmpp_core.jobs.provenance import commit, machine

#: Outcome of a notebook whose page is still what a run would give.
UNCHANGED = "unchanged"

_DATA_NOTICE = """The upstream files of this chapter ({groups}) could not be had here, so the page shows the outputs that are stored with
the project. To compute it here, set `LLMPP_DATA_DIR` to a folder that holds the files, or fetch them with
`llmpp fetch {names}`; then `llmpp run {stem}`."""
_NOT_RUN_NOTICE = """This chapter was not run in this build, so the page shows the outputs that are stored with the project. To compute it
here: `llmpp run {stem}`."""


def run(
    paths: Paths,
    names: Sequence[str] = (),
    *,
    profile: str = "smoke",
    parameters: Mapping[str, Any] | None = None,
    workers: int | None = None,
    force: bool = False,
    update: bool = False,
    console: Console | None = None,
) -> int:
    """Run notebooks and write the pages of the book that tell of runs.

    Parameters
    ----------
    paths : Paths
        The repository.
    names : sequence of str
        Notebooks such as "03" or "03_baselines"; all for none. Those that they come after run too, where they changed.
    profile : str
        One of `runner_plan.PROFILES`.
    parameters : mapping, optional
        Parameters of the named notebooks that differ from the defaults.
    workers : int, optional
        How many notebooks may run at a time; by default one per CPU.
    force : bool
        Run the named notebooks even if nothing changed.
    update : bool
        Store the executed notebooks as the committed ones.
    console : Console, optional
        Where to print.

    Returns
    -------
    int
        Exit code: 0, or 1 if a notebook failed or could not be stored.

    Raises
    ------
    InputError
        If a name, profile, parameter, notebook or the claims file is wrong; nothing was written.
    DamagedFileError
        If an upstream file is damaged; nothing ran.
    """
    console = console or Console()
    if workers is not None and workers < 1:
        raise InputError(f"--jobs is {workers}; expected a positive number")
    if update and (profile != "smoke" or parameters):
        raise InputError("--update stores the smoke profile with default parameters only; leave out --profile and -p")
    sections = read_claims(paths.claims)
    notebooks = read_notebooks(paths)
    chosen = select(notebooks, names)
    jobs = plan(paths, notebooks, chosen, profile, parameters or {}, force=force, console=console)
    # The number of threads that each gets does not depend on what is chosen, so that numbers do not either.
    workers = min(workers or joblib.cpu_count(), len(notebooks))
    for folder in (paths.pages, paths.generated, paths.runs, *([paths.notebooks] if update else [])):
        _refuse_unwritable(folder)
    current = _Run(paths, jobs, workers, console)
    current.execute()
    _fill(paths, [notebook for stem, notebook in notebooks.items() if stem not in jobs])
    records = {stem: read_record(paths.record(stem)) for stem in notebooks}
    write_atomically(paths.generated / "status.md", status_page(paths, records))
    write_atomically(paths.generated / "scorecard.md", scorecard_page(paths, sections, records))
    stored = _update(paths, [jobs[stem] for stem in chosen], current.outcomes, console) if update else True
    counts = ", ".join(f"{number} {outcome}" for outcome, number in Counter(current.outcomes.values()).items())
    console.line(f"{len(jobs)} notebook{'s' * (len(jobs) > 1)} in {duration(console.elapsed())}: {counts}")
    return 0 if stored and not {FAILED, NOT_RUN} & set(current.outcomes.values()) else 1


def _refuse_unwritable(folder: Path) -> None:
    try:
        need_writable(folder / "page")
    except ValueError as error:
        raise InputError(str(error)) from None


def failure_report(paths: Paths, job: Job, failure: Failure) -> str:
    """Return what a reader needs to find a failure: cell, end of the traceback, and the command that runs it again."""
    tail = failure.traceback.splitlines()[-30:]
    partial = paths.runs / f"{job.notebook.stem}.failed.ipynb"
    lines = [
        f"{job.notebook.stem} failed in cell {failure.cell}: {failure.error}",
        "",
        *(f"    {line}" for line in failure.source.splitlines()),
        "",
        *tail,
        "",
        *([f"as far as it came: {partial.relative_to(paths.root).as_posix()}"] if partial.is_file() else []),
        f"run it again with: {job.command()}",
    ]
    return "\n".join(lines) + "\n"


def _fill(paths: Paths, notebooks: Sequence[Notebook]) -> None:
    """Give the notebooks that have no page of a run one with their stored outputs, so that the book can be built."""
    for notebook in notebooks:
        page, record = paths.page(notebook.stem), read_record(paths.record(notebook.stem))
        if page.is_file() and (record is None or record.state != NOT_RUN):
            continue
        write_atomically(page, stored_page(notebook, "Not run in this build", _NOT_RUN_NOTICE.format(stem=notebook.stem)))
        if record is None:
            data = dict.fromkeys(notebook.needs, STORED)
            write_record(paths.record(notebook.stem), Record(NOT_RUN, data=data, run=notebook.stored_run))


def _update(paths: Paths, jobs: Sequence[Job], outcomes: Mapping[str, str], console: Console) -> bool:
    """Store the executed notebooks as the committed ones; return whether all could be."""
    complete = True
    for job in jobs:
        stem = job.notebook.stem
        refused = "" if outcomes[stem] in (DONE, UNCHANGED) else outcomes[stem]
        if read(job.notebook.path) != job.notebook:
            refused = "it was edited while it ran"
        if refused:
            complete = False
            console.error(f"{stem}  not updated: {refused}")
        elif write_atomically(job.notebook.path, paths.page(stem).read_text(encoding="utf-8")):
            console.line(f"{stem}  updated")
    return complete


@cache
def _build_font_cache() -> None:
    """Load matplotlib's fonts: on a machine new to it that is slow and prints a warning, which belongs in no notebook."""
    # What it is in a kernel is set there; here a wrong one would be an error.
    os.environ.pop("MPLBACKEND", None)
    import matplotlib.font_manager  # noqa: F401


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    channel: Connection
    cell: int = 0


class _Run:
    """One call of `run`: starts jobs whose predecessors are done, takes in their reports, and writes records and pages."""

    def __init__(self, paths: Paths, jobs: dict[str, Job], workers: int, console: Console):
        self.paths, self.jobs, self.workers, self.console = paths, jobs, workers, console
        self.records = {stem: read_record(paths.record(stem)) for stem in jobs}
        self.outcomes: dict[str, str] = {}
        self.commit = commit(paths.root)
        self.state = project_state(paths)
        self.threads = max(1, joblib.cpu_count() // workers)

    def execute(self) -> None:
        """Bring every job to its outcome."""
        order = TopologicalSorter({stem: job.notebook.after for stem, job in self.jobs.items()})
        order.prepare()
        ready: list[str] = []
        running: dict[Connection, _Running] = {}
        try:
            while order.is_active():
                # Those that took longest start first; those never run before them.
                ready = sorted([*ready, *order.get_ready()], key=lambda stem: -(r.seconds or 1e9 if (r := self.records[stem]) else 1e9))
                while ready and len(running) < self.workers:
                    job = self.jobs[ready.pop(0)]
                    if self.settle(job):
                        order.done(job.notebook.stem)
                        ready += order.get_ready()
                    else:
                        started = self.start(job)
                        running[started.channel] = started
                heard = wait(list(running), 0.5 if self.console.bars else None) if running else []
                for channel in [channel for channel in running if channel in heard]:
                    if self.hear(running[channel]):
                        order.done(running.pop(channel).job.notebook.stem)
                self.console.tick()
        finally:
            self.console.close()
            for stray in running.values():
                stray.process.terminate()
            for stray in running.values():
                stray.process.join(10)
                stray.process.kill()

    def settle(self, job: Job) -> bool:
        """Settle a job without executing it, where that is possible."""
        stem = job.notebook.stem
        failed = [before for before in job.notebook.after if self.outcomes[before] in (FAILED, NOT_RUN)]
        if failed:
            self.conclude(job, Record(NOT_RUN, reason=f"needs {', '.join(failed)}"), f"not run: needs {', '.join(failed)}")
        elif job.current:
            self.outcomes[stem] = UNCHANGED
            self.console.line(f"{stem}  unchanged")
        elif job.missing:
            groups = [group for group, origin in job.data.items() if origin == STORED]
            content = stored_page(
                job.notebook, "Stored outputs", _DATA_NOTICE.format(groups=", ".join(groups), names=" ".join(groups), stem=stem)
            )
            write_atomically(self.paths.page(stem), content)
            record = Record(STORED, data=job.data, reason=job.missing, run=job.notebook.stored_run)
            self.conclude(job, record, f"stored outputs: {job.missing}")
        else:
            return False
        return True

    def record(self, job: Job, state: str, **fields: Any) -> Record:
        return Record(state, job.content, data=job.data, run=job.run, machine=machine(), commit=self.commit, **fields)

    def conclude(self, job: Job, record: Record, message: str) -> None:
        stem = job.notebook.stem
        self.outcomes[stem] = record.state
        self.records[stem] = record
        write_record(self.paths.record(stem), record)
        self.console.finish(stem, message)

    def start(self, job: Job) -> _Running:
        stem = job.notebook.stem
        for name in (f"{stem}.failure.txt", f"{stem}.failed.ipynb"):
            (self.paths.runs / name).unlink(missing_ok=True)
        _build_font_cache()
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads))}
        if job.run["profile"] == "smoke":
            # The smoke profile is the same on every machine: on the CPU.
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if os.environ.get("LLMPP_DATA_DIR"):
            # The kernel's working directory is another.
            environment["LLMPP_DATA_DIR"] = str(Path(os.environ["LLMPP_DATA_DIR"]).resolve())
        task = Task(
            notebook=job.notebook.content,
            folder=self.paths.notebooks,
            page=self.paths.page(stem),
            partial=self.paths.runs / f"{stem}.failed.ipynb",
            parameters=job.parameters,
            run=job.run,
            environment=environment,
        )
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(theirs, task), name=stem, daemon=True)
        # Ctrl-C is for this process, which then stops the workers; they inherit that they ignore it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        self.console.start(stem, job.notebook.code_cells + bool(job.parameters))
        return _Running(job, process, ours)

    def hear(self, running: _Running) -> bool:
        """Take in what a worker sent; return whether it was its last word."""
        job = running.job
        try:
            message = running.channel.recv()
        except EOFError:
            running.process.join()
            error = f"its process ended with exit code {running.process.exitcode}"
            message = Failure(running.cell, "", error, f"{error}; if that is -9, the machine may have run out of memory")
        if isinstance(message, int):
            running.cell = message
            self.console.cell(job.notebook.stem, message)
            return False
        running.process.join()
        if isinstance(message, Finished):
            slowest = message.slowest
            detail = f" (slowest: cell {slowest['cell']}, {duration(slowest['seconds'])})" if slowest else ""
            record = self.record(job, DONE, page=message.page, seconds=message.seconds, slowest=slowest)
            if project_state(self.paths) != self.state:
                # The module was edited meanwhile: nobody knows which version this page is of, so it is made again next time.
                record.content = ""
            self.conclude(job, record, f"done in {duration(message.seconds)}{detail}")
        else:
            report = failure_report(self.paths, job, message)
            write_atomically(self.paths.runs / f"{job.notebook.stem}.failure.txt", report)
            what = f"in cell {message.cell}: {message.error}"
            self.conclude(job, self.record(job, FAILED, reason=what), f"FAILED {what}")
            self.console.error(report)
        return True
