"""Work in processes that are killed or interrupted at random moments."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_core.jobs.files import read_rows


def run_killed(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    watched: Path,
    kills: int,
    rng: np.random.Generator,
    steps: int = 1,
    method: str = "forkserver",
) -> None:
    """Run `work` in processes that are killed at random moments, and in the end in one that is not.

    A process is killed a little while after it was seen to change something in the folder `watched` `steps` times, so each gets
    further than the one before it.
    """
    context: Any = multiprocessing.get_context(method)
    for attempt in range(kills + 1):
        before, changes = _state(watched), 0
        process = context.Process(target=work, args=arguments)
        process.start()
        while attempt < kills and process.is_alive() and changes < steps:
            time.sleep(0.001)
            now = _state(watched)
            before, changes = now, changes + (now != before)
        if attempt < kills:
            process.join(rng.uniform(0, 0.02))
            process.kill()
        process.join(120)
        if process.exitcode == 0:
            # On a fast machine the work may be done before its turn to be killed.
            assert attempt >= min(kills, 2)
            return
        assert process.exitcode == -9
    raise AssertionError("the last process was not to be killed")


def run_interrupted(script: str, folder: Path, number: int) -> list[int]:
    """Run a script that adds rows to the file it is given, interrupt it after twenty, and return the numbers of the rows kept.

    A script that is interrupted and not killed has to say so in one line. Either way all of its processes have to end.
    """
    source, table = folder / "script.py", folder / "rows.jsonl"
    source.write_text(script)
    process = subprocess.Popen([sys.executable, source, table], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(read_rows(table)) < 20 and process.poll() is None:
        time.sleep(0.01)
    if number == signal.SIGINT:
        # To all of them, as a terminal does.
        os.killpg(process.pid, number)
    else:
        process.kill()
    # The pipe is closed when the last of them has ended.
    _, err = process.communicate(timeout=180)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err == "interrupted; what is finished is kept, and the same command goes on from there\n"
    return [row["i"] for row in read_rows(table)]


def _state(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.append((path.name, status.st_mtime_ns, status.st_size))
    return found
