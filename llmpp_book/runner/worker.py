"""The process that executes one notebook and tells the runner how far it is."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from llmpp_book.runner.notebook import normalise, sha256, write_atomically

#: What a kernel must not take from its surroundings: an editor exports a backend of its own, which shows nothing here.
SURROUNDINGS = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do.

    Parameters
    ----------
    notebook : dict
        The notebook as it was when the run was planned, which is what its content hash stands for.
    folder : Path
        Working directory of the kernel.
    page, partial : Path
        Where to write the notebook when it is finished, and where when it failed.
    parameters : dict
        Only those that differ from the defaults: the cell that sets them is part of the page.
    run : dict
        What the page says of its run.
    environment : dict
        Variables to set for the kernel.
    """

    notebook: dict[str, Any]
    folder: Path
    page: Path
    partial: Path
    parameters: dict[str, Any]
    run: dict[str, Any]
    environment: dict[str, str]


@dataclass(frozen=True)
class Finished:
    """A notebook ran to its end: the sha256 of its page, its time, and its slowest cell."""

    page: str
    seconds: float
    slowest: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A notebook stopped: at which cell (0 before the first), that cell's source, and the traceback or what else is known."""

    cell: int
    source: str
    error: str
    traceback: str


def work(channel: Connection, task: Task) -> None:
    """Execute a notebook; sends the number of each code cell that starts, then `Finished` or `Failure`."""
    # The kernel is stopped on the way out, whether the runner asks for it or is gone itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.Thread(target=_follow_parent, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="llmpp-") as folder:
        # What reaches the process itself, not the notebook, would disturb the runner's display; it is kept for a failure.
        with open(Path(folder) / "log", "wb") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        # A fresh IPython folder: no start-up files of this user, no history that parallel kernels would lock.
        os.environ.update(task.environment, IPYTHONDIR=str(Path(folder) / "ipython"), **SURROUNDINGS)
        channel.send(_execute(task, Path(folder), channel.send))


def own_kernels() -> Any:
    """Return a `KernelSpecManager` that knows this interpreter's kernel alone: another of its name would compute with other libraries."""
    from jupyter_client.kernelspec import KernelSpecManager

    return KernelSpecManager(kernel_dirs=[])


def _follow_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(1)


def _execute(task: Task, scratch: Path, tell: Callable[[int], None]) -> Finished | Failure:
    import papermill
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **options: Any):
            super().__init__(kernel_spec_manager=own_kernels(), **options)

    planned, partial = scratch / "planned.ipynb", scratch / "partial.ipynb"
    planned.write_text(json.dumps(task.notebook), encoding="utf-8")
    started: list[tuple[int, str]] = []

    def start(cell: Any, cell_index: int) -> None:
        started.append((cell_index, cell["source"]))
        tell(len(started))

    begin = time.monotonic()
    try:
        for attempt in range(3):
            try:
                executed = papermill.execute_notebook(
                    planned,
                    partial,
                    parameters=task.parameters,
                    cwd=task.folder,
                    progress_bar=False,
                    start_timeout=120,
                    coalesce_streams=True,
                    extra_arguments=["--log-level=ERROR"],
                    on_cell_execute=start,
                    kernel_manager_class=OwnKernel,
                )
                break
            except RuntimeError:
                # Kernels that start together may pick the same port; the loser dies before its first cell.
                if started or attempt == 2:
                    raise
        if len(started) < sum(_runs(cell) for cell in executed["cells"]):
            raise RuntimeError("the notebook ended itself before its last cell")
    except Exception as error:
        cell, source = len(started), started[-1][1] if started else ""
        lines = [f"{type(error).__name__}: {error}", (scratch / "log").read_text(errors="replace")]
        if isinstance(error, papermill.PapermillExecutionError):
            cell = next(n for n, (index, _) in enumerate(started, 1) if index == error.cell_index)
            source, lines = error.source, error.traceback
        if partial.is_file():
            write_atomically(task.partial, normalise(json.loads(partial.read_text(encoding="utf-8")), task.run))
        return Failure(cell, source, _error(error), papermill.exceptions.strip_color("\n".join(lines)).strip())
    write_atomically(task.page, normalise(executed, task.run))
    return Finished(sha256(task.page), time.monotonic() - begin, _slowest(executed))


def _runs(cell: Mapping[str, Any]) -> bool:
    return bool(cell["cell_type"] == "code" and cell["source"].strip())


def _error(error: Exception) -> str:
    """Return an error as one line."""
    name, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return " ".join(f"{name}: {message}".split())[:300]


def _slowest(executed: Mapping[str, Any]) -> dict[str, Any]:
    cells = [cell for cell in executed["cells"] if _runs(cell)]
    timed = [(cell["metadata"]["papermill"]["duration"] or 0.0, number, cell["source"]) for number, cell in enumerate(cells, 1)]
    if not timed:
        return {}
    seconds, number, source = max(timed)
    lines = [line.strip() for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {"cell": number, "seconds": seconds, "line": (lines or source.splitlines())[0].replace("`", "'")[:28]}
