"""Run the book's notebooks: several at a time, only what changed, and so that a killed run goes on.

A page is made again if its content hash differs from that of its record. Each notebook runs in a process of its own: only a finished
page enters ``book/notebooks``, in one step; its record follows, so that a page without one is never taken for a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib

from llmpp_book.errors import InputError
from llmpp_book.runner.dependencies import Project, content_hash
from llmpp_book.runner.notebook import Notebook, Paths, normalise, read, running_cells, stored_page, text, write_atomically
from llmpp_book.runner.plan import Job, plan
from llmpp_book.runner.scorecard import read_claims, scorecard_page
from llmpp_book.runner.status import DONE, FAILED, NOT_RUN, STORED, Record, duration, read_record, status_page, write_record
from llmpp_book.runner.worker import SURROUNDINGS
from llmpp_core.jobs.files import need_writable
from llmpp_core.jobs.provenance import commit, machine

#: Outcome of a notebook whose page is still what a run would give.
UNCHANGED = "unchanged"

_DATA_NOTICE = """*Stored outputs*: the upstream files of this chapter ({groups}) could not be had here. To compute it, set `LLMPP_DATA_DIR`
to a folder that holds them or run `llmpp fetch {names}`; then run `llmpp run {stem}`."""
_NOT_RUN_NOTICE = "*Not run in this build*: the outputs are those stored with the project. To compute them here: `llmpp run {stem}`."


def run(
    paths: Paths,
    names: Sequence[str] = (),
    *,
    profile: str = "smoke",
    parameters: Mapping[str, Any] | None = None,
    workers: int | None = None,
    force: bool = False,
    update: bool = False,
) -> int:
    """Run notebooks and write the pages of the book that tell of runs; return the exit code, 1 if one failed or could not be stored.

    Parameters
    ----------
    paths, names
        The repository, and notebooks such as "03" or "03_baselines"; all for none.
    profile, parameters
        One of `plan.PROFILES`, and parameters of the named notebooks that differ from the defaults.
    workers : int, optional
        How many notebooks may run at a time; by default one per CPU.
    force, update : bool
        Run the named notebooks even if nothing changed; store the executed notebooks as the committed ones.

    Raises
    ------
    InputError
        If a name, profile, parameter, notebook or the claims file is wrong; nothing was written.
    DamagedFileError
        If an upstream file is damaged; nothing ran.
    """
    begin = time.monotonic()
    if update and (profile != "smoke" or parameters):
        raise InputError("--update stores the smoke profile with default parameters only; leave out --profile and -p")
    sections = read_claims(paths.claims)
    notebooks, jobs = plan(paths, names, profile, parameters or {}, force=force, say=_say)
    for folder in (paths.pages, paths.generated, paths.runs, *([paths.notebooks] if update else [])):
        try:
            need_writable(folder / "page")
        except ValueError as error:
            raise InputError(str(error)) from None
    # The number of threads that each gets does not depend on what is chosen, so that numbers do not either.
    outcomes = _Run(paths, notebooks, jobs, min(workers or joblib.cpu_count(), len(notebooks))).execute()
    for stem in notebooks.keys() - jobs.keys():
        _fill(paths, notebooks[stem])
    # Pages of chapters that are no more, such as one that was renamed.
    for page in set(paths.pages.glob("*.ipynb")) - {paths.page(stem) for stem in notebooks}:
        page.unlink()
    records = {stem: read_record(paths.record(stem)) for stem in notebooks}
    write_atomically(paths.generated / "status.md", status_page(paths, records))
    write_atomically(paths.generated / "scorecard.md", scorecard_page(paths, sections, records))
    stored = [_update(paths, job, outcomes[stem]) for stem, job in jobs.items()] if update else []
    counts = ", ".join(f"{number} {outcome}" for outcome, number in Counter(outcomes.values()).items())
    _say(f"{len(jobs)} notebook{'s' * (len(jobs) > 1)} in {duration(time.monotonic() - begin)}: {counts}")
    return 0 if all(stored) and FAILED not in outcomes.values() else 1


def _say(message: str, stream: Any = None) -> None:
    # In one piece: several threads speak.
    (stream or sys.stdout).write(message + "\n")
    (stream or sys.stdout).flush()


def _fill(paths: Paths, notebook: Notebook) -> None:
    """Give a notebook that has no page of a run one with its stored outputs, so that the book can be built."""
    page, record = paths.page(notebook.stem), read_record(paths.record(notebook.stem))
    if page.is_file() and (record is None or record.state != NOT_RUN):
        return
    write_atomically(page, stored_page(notebook, _NOT_RUN_NOTICE.format(stem=notebook.stem)))
    if record is None or record.state == DONE:
        write_record(paths.record(notebook.stem), Record(NOT_RUN, data=dict.fromkeys(notebook.needs, STORED), run=notebook.stored_run))


def _update(paths: Paths, job: Job, outcome: str) -> bool:
    """Store an executed notebook as the committed one; return whether it could be."""
    stem = job.notebook.stem
    refused = "" if outcome in (DONE, UNCHANGED) else outcome
    if read(job.notebook.path) != job.notebook:
        refused = "it was edited while it ran"
    if refused:
        _say(f"{stem}  not updated: {refused}", sys.stderr)
    elif write_atomically(job.notebook.path, paths.page(stem).read_text(encoding="utf-8")):
        _say(f"{stem}  updated")
    return not refused


class _Run:
    """One call of `run`: its jobs, and the processes that execute notebooks."""

    def __init__(self, paths: Paths, notebooks: Mapping[str, Notebook], jobs: dict[str, Job], workers: int):
        self.paths, self.notebooks, self.jobs, self.workers = paths, notebooks, jobs, workers
        self.outcomes: dict[str, str] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stopped = False
        self.commit = commit(paths.root)

    def execute(self) -> dict[str, str]:
        """Bring every job to its outcome; those that took longest come first, and those never run before them."""
        if not all(job.current or job.missing for job in self.jobs.values()):
            # On a machine new to matplotlib that is slow and prints a warning, which belongs in no notebook.
            subprocess.run(
                [sys.executable, "-c", "import matplotlib.font_manager"], env={**os.environ, **SURROUNDINGS}, capture_output=True
            )
        seconds = {stem: record.seconds for stem in self.jobs if (record := read_record(self.paths.record(stem)))}
        order = sorted(self.jobs, key=lambda stem: -(seconds.get(stem) or 1e9))
        pool = ThreadPoolExecutor(self.workers)
        try:
            for begun in [pool.submit(self.bring, self.jobs[stem]) for stem in order]:
                begun.result()
        finally:
            self.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            # Workers stop when their input ends.
            for process in self.processes:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()  # type: ignore[union-attr]
            for process in self.processes:
                process.wait()
        return self.outcomes

    def bring(self, job: Job) -> None:
        """Bring a job to its outcome."""
        if job.current:
            self.outcomes[job.notebook.stem] = UNCHANGED
            _say(f"{job.notebook.stem}  unchanged")
        elif job.missing:
            self.show_stored(job)
        else:
            self.run_notebook(job)

    def conclude(self, job: Job, record: Record, message: str) -> None:
        """Take down how a job ended."""
        self.outcomes[job.notebook.stem] = record.state
        write_record(self.paths.record(job.notebook.stem), record)
        _say(f"{job.notebook.stem}  {message}")

    def show_stored(self, job: Job) -> None:
        """Make the page of a notebook whose data cannot be had."""
        stem, groups = job.notebook.stem, [group for group, origin in job.data.items() if origin == STORED]
        notice = _DATA_NOTICE.format(groups=", ".join(groups), names=" ".join(groups), stem=stem)
        write_atomically(self.paths.page(stem), stored_page(job.notebook, notice))
        self.conclude(job, Record(STORED, data=job.data, reason=job.missing, run=job.notebook.stored_run), f"stored outputs: {job.missing}")

    def run_notebook(self, job: Job) -> None:
        """Execute a notebook in a process of its own, and say what came of it."""
        stem = job.notebook.stem
        report, partial = self.paths.runs / f"{stem}.failure.txt", self.paths.runs / f"{stem}.failed.ipynb"
        self.paths.runs.mkdir(parents=True, exist_ok=True)
        for path in (report, partial):
            path.unlink(missing_ok=True)
        record = Record(DONE, job.content, data=job.data, run=job.run, machine=machine(), commit=self.commit)
        task = {"notebook": job.notebook.content, "parameters": job.parameters, "record": asdict(record)}
        places = {"folder": self.paths.notebooks, "page": self.paths.page(stem), "written": self.paths.record(stem), "partial": partial}
        _say(f"{stem}  started")
        code, log = self.work(job, {**task, **{name: str(path) for name, path in places.items()}})
        if self.stopped:
            return
        if code == 0:
            record = read_record(self.paths.record(stem)) or record
            if content_hash(job.notebook, Project(self.paths.root, self.notebooks), job.run, job.parameters) != job.content:
                # The code was edited meanwhile: nobody knows which version this page is of, so it is made again next time.
                record.content = ""
            slowest = f" (slowest: cell {record.slowest['cell']}, {duration(record.slowest['seconds'])})" if record.slowest else ""
            self.conclude(job, record, f"done in {duration(record.seconds)}{slowest}")
            return
        record.state = FAILED
        record.reason, lines = read_failure(partial, code, log)
        if partial.is_file():
            write_atomically(partial, normalise(json.loads(partial.read_text(encoding="utf-8")), job.run))
            lines.append(f"as far as it came: {partial.relative_to(self.paths.root).as_posix()}")
        lines = [f"{stem} failed {record.reason}", *lines, f"run it again with: {job.command()}"]
        self.conclude(job, record, f"FAILED {record.reason}")
        write_atomically(report, "\n".join(lines) + "\n")
        _say(report.read_text(encoding="utf-8"), sys.stderr)

    def work(self, job: Job, task: Mapping[str, Any]) -> tuple[int, str]:
        """Have a worker do a task; return its exit code and what it printed."""
        environment = {"OMP_NUM_THREADS": str(max(1, joblib.cpu_count() // self.workers)), **os.environ}
        if job.run["profile"] == "smoke":
            # The smoke profile is the same on every machine: on the CPU.
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if os.environ.get("LLMPP_DATA_DIR"):
            # The kernel's working directory is another.
            environment["LLMPP_DATA_DIR"] = str(Path(os.environ["LLMPP_DATA_DIR"]).resolve())
        with tempfile.TemporaryFile() as log:
            # Ctrl-C is for this process, which then stops the workers: a session of their own does not get it.
            command = [sys.executable, "-m", "llmpp_book.runner.worker"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True)
            self.processes.append(process)
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(task).encode() + b"\n")
                process.stdin.flush()
            code = process.wait()
            log.seek(0)
            return code, log.read().decode(errors="replace").strip()


def read_failure(partial: Path, code: int, log: str) -> tuple[str, list[str]]:
    """Return where a notebook stopped and why, in one line, and that cell's source and the end of the traceback.

    Cells count from 1; 0 is before the first. What a worker left behind tells: the notebook as far as it came, its exit code and its log.
    """
    error, begun = log.splitlines()[-1] if log and code == 1 else f"its process ended with exit code {code}", []
    if code < 0:
        log += f"\n{error}; if that is -9, the machine may have run out of memory"
    with contextlib.suppress(OSError, ValueError):
        cells = running_cells(json.loads(partial.read_text(encoding="utf-8")))
        begun = [cell for cell in cells if cell["metadata"]["papermill"]["start_time"]]
    for output in begun[-1]["outputs"] if begun else []:
        if output["output_type"] == "error" and output["ename"] != "SystemExit":
            error, log = f"{output['ename']}: {output['evalue']}", "\n".join(output["traceback"])
    source = text(begun[-1]["source"]).splitlines() if begun else []
    traceback = re.sub(r"\x1b\[[\d;]*m", "", log).strip().splitlines()[-30:]
    return f"in cell {len(begun)}: {' '.join(error.split())[:300]}", ["", *(f"    {line}" for line in source), "", *traceback, ""]
