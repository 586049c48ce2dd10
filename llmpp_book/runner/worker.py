"""The process that executes one notebook: ``python -m llmpp_book.runner.worker`` reads what to do, as JSON, from its standard input.

It stops, and its kernel with it, when that input ends: when whoever started it is gone or wants it to stop.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from llmpp_book.runner.notebook import normalise, running_cells, sha256, write_atomically

#: What a kernel must not take from its surroundings: an editor exports a backend of its own, which shows nothing here.
SURROUNDINGS = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder with a short path: sockets are files there, whose paths have 107 characters at most."""
    return tempfile.TemporaryDirectory(prefix="llmpp-", dir="/tmp" if len(tempfile.gettempdir()) > 60 else None)


def kernel_options(folder: str, name: str = "kernel") -> dict[str, Any]:
    """Return options of a `KernelManager`: this interpreter's kernel alone, since another of its name would compute with other
    libraries, and sockets in files, since of two kernels that start together and pick the same port one would never answer.
    """
    from jupyter_client.kernelspec import KernelSpecManager

    return {
        "kernel_spec_manager": KernelSpecManager(kernel_dirs=[]),
        "transport": "ipc",
        "connection_file": f"{folder}/{name}.json",
    }


def main() -> None:
    """Execute the notebook and write its page, then its record; where it fails, what came of it stays at ``partial``."""
    task = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    with scratch_folder() as folder:
        # A fresh IPython folder: no start-up files of this user, no history that parallel kernels would lock.
        os.environ.update(SURROUNDINGS, IPYTHONDIR=f"{folder}/ipython")
        begin = time.monotonic()
        executed = _execute(task, folder)
        seconds = time.monotonic() - begin
    page, record = Path(task["page"]), {**task["record"], "seconds": seconds, "slowest": _slowest(executed)}
    write_atomically(page, normalise(executed, task["record"]["run"]))
    write_atomically(Path(task["written"]), json.dumps({**record, "page": sha256(page)}, indent=1) + "\n")
    Path(task["partial"]).unlink()


def _stop_at_end_of_input() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)


def _execute(task: dict[str, Any], folder: str) -> Any:
    import nbformat
    import papermill
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **options: Any):
            super().__init__(**options | kernel_options(folder))

    executed = papermill.execute_notebook(
        nbformat.from_dict(task["notebook"]),
        task["partial"],
        parameters=task["parameters"],
        cwd=task["folder"],
        progress_bar=False,
        start_timeout=120,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        kernel_manager_class=OwnKernel,
    )
    if any(cell["metadata"]["papermill"]["status"] != "completed" for cell in running_cells(executed)):
        raise RuntimeError("the notebook ended itself before its last cell")
    return executed


def _slowest(executed: Any) -> dict[str, Any]:
    timed = [(c["metadata"]["papermill"]["duration"] or 0.0, number, c["source"]) for number, c in enumerate(running_cells(executed), 1)]
    if not timed:
        return {}
    seconds, number, source = max(timed)
    lines = [line.strip() for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {"cell": number, "seconds": seconds, "line": (lines or source.splitlines())[0].replace("`", "'")[:28]}


if __name__ == "__main__":
    main()
