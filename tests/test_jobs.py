"""Jobs whose results are rows: each row is written once, whatever the executor, and whatever is killed or fails."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_nets import run_killed

from llmpp_core.jobs.files import read_rows
from llmpp_core.jobs.table import end_with_parent, run_jobs


def square(i: int) -> dict[str, int]:
    return {"square": i * i}


def jobs(n: int) -> list[tuple[dict[str, Any], tuple[int]]]:
    return [({"name": "a" if i % 2 else "b", "i": i}, (i,)) for i in range(n)]


def rows(n: int) -> list[dict[str, Any]]:
    return [{**key, "square": i * i} for key, (i,) in jobs(n)]


class Backwards(Executor):
    """Runs what it was given when the last job has come, the last one first."""

    def __init__(self, n: int):
        self.given: list[Any] = []
        self.n = n

    def submit(self, work: Any, *arguments: Any, **_: Any) -> Future:  # type: ignore[override]
        future: Future = Future()
        self.given.append((future, work, arguments))
        if len(self.given) == self.n:
            for waiting, job, values in self.given[::-1]:
                waiting.set_result(job(*values))
        return future


# --- every job once ---------------------------------------------------------------------------------------------------


def test_rows_are_the_same_with_every_executor(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads, ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as processes:
        for name, executor in {"none": None, "threads": threads, "processes": processes, "backwards": Backwards(20)}.items():
            path = tmp_path / name / "rows.jsonl"
            assert run_jobs(square, jobs(20), path, executor=executor) == rows(20)
            assert sorted(read_rows(path), key=lambda row: row["i"]) == rows(20)


def test_jobs_that_have_a_row_are_not_run_again(tmp_path: Path) -> None:
    path, called = tmp_path / "rows.jsonl", []

    def work(i: int) -> dict[str, int]:
        called.append(i)
        return square(i)

    run_jobs(work, jobs(4), path)
    assert run_jobs(work, jobs(7), path) == rows(7)
    assert run_jobs(work, jobs(2), path) == rows(2)
    assert called == list(range(7))
    # The key counts, not the order of its fields, nor what else a row holds.
    turned = [({"i": i, "name": key["name"]}, (i,)) for key, (i,) in jobs(7)]
    assert run_jobs(work, turned, path) == rows(7)
    assert called == list(range(7))
    assert run_jobs(work, [], path) == []
    assert read_rows(path) == rows(7)


def test_jobs_without_a_result_are_run_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert run_jobs(lambda i: None if i % 3 else square(i), jobs(9), path) == rows(9)[::3]
    assert read_rows(path) == rows(9)[::3]
    assert run_jobs(square, jobs(9), path) == rows(9)


def test_a_row_is_on_the_disk_as_soon_as_its_job_is_done(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    seen = []

    def work(i: int) -> dict[str, int]:
        seen.append(len(read_rows(path)))
        return square(i)

    run_jobs(work, jobs(5), path)
    assert seen == [0, 1, 2, 3, 4]


def test_two_jobs_of_the_same_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs: two have the same key"):
        run_jobs(square, [*jobs(3), jobs(2)[1]], tmp_path / "rows.jsonl")


def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "b", "i": 0, "square": 0}\nrubbish\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not a JSON object"):
        run_jobs(square, jobs(3), path)
    assert path.read_text().endswith("rubbish\n")


def test_a_progress_bar_counts_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_jobs(square, jobs(2), tmp_path / "rows.jsonl")
    run_jobs(square, jobs(4), tmp_path / "rows.jsonl", progress="squares")
    assert "squares: 100%" in capsys.readouterr().err


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 2])
def test_a_failing_job_loses_no_row_of_the_others(threads: int, tmp_path: Path) -> None:
    path, started = tmp_path / "rows.jsonl", []

    def work(i: int) -> dict[str, int]:
        started.append(i)
        time.sleep(0.02 if i == 3 else 0.05)
        if i == 3:
            raise RuntimeError("no memory")
        return square(i)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        executor = pool if threads else None
        with pytest.raises(RuntimeError, match="no memory"):
            run_jobs(work, jobs(40), path, executor=executor)
        # What was under way is finished and kept; what had not begun does not begin.
        kept = [row["i"] for row in read_rows(path)]
        assert sorted([*kept, 3]) == sorted(started)
        assert {0, 1, 2} <= set(kept)
        assert len(started) < 10
        assert run_jobs(square, jobs(40), path, executor=executor) == rows(40)
    assert len(read_rows(path)) == 40


def test_a_worker_that_dies_is_reported_and_its_job_runs_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool, pytest.raises(RuntimeError, match="abruptly"):
        run_jobs(die_once, [({"i": i}, (i, str(tmp_path / "died"))) for i in range(4)], path, executor=pool)
    assert [row["i"] for row in read_rows(path)] == [0, 1]
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        found = run_jobs(die_once, [({"i": i}, (i, str(tmp_path / "died"))) for i in range(4)], path, executor=pool)
    assert [row["square"] for row in found] == [0, 1, 4, 9]


def die_once(i: int, mark: str) -> dict[str, int]:
    if i == 2 and not os.path.exists(mark):
        # Let the results before this one arrive.
        time.sleep(0.3)
        Path(mark).touch()
        os._exit(1)
    return square(i)


# --- killed -----------------------------------------------------------------------------------------------------------


def run_slowly(path: Path, threads: int) -> None:
    def work(i: int) -> dict[str, Any]:
        time.sleep(0.002)
        return {**square(i), "long": "x" * 20_000}

    with ThreadPoolExecutor(max(1, threads)) as pool:
        run_jobs(work, jobs(150), path, executor=pool if threads else None)


@pytest.mark.parametrize("threads", [0, 3])
def test_no_row_is_lost_or_doubled_when_it_is_killed_again_and_again(threads: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    run_killed(run_slowly, (path, threads), tmp_path, kills=5, rng=np.random.default_rng(threads))
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["i"] for row in found) == list(range(150))
    assert all(row["square"] == row["i"] ** 2 and len(row["long"]) == 20_000 for row in found)


def run_in_processes(folder: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("fork"), initializer=end_with_parent) as pool:
        run_jobs(leave_a_trace, [({"i": i}, (i, folder)) for i in range(1000)], folder / "rows.jsonl", executor=pool)


def leave_a_trace(i: int, folder: Path) -> dict[str, int]:
    (folder / f"{os.getpid()}.worker").touch()
    time.sleep(0.05)
    return square(i)


def test_workers_end_with_the_process_that_was_killed(tmp_path: Path) -> None:
    process = get_context("forkserver").Process(target=run_in_processes, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.worker"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    workers = [path.stem for path in tmp_path.glob("*.worker")]
    while any(_is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    # One that has ended may wait for somebody to take notice.
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_two_processes_do_not_add_to_one_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def rival(x: int) -> dict[str, int]:
        with pytest.raises(ValueError, match=r"rows\.jsonl: another process is adding to it"):
            run_jobs(square, [({"x": 9}, (9,))], path)
        return square(x)

    assert [row["x"] for row in run_jobs(rival, [({"x": x}, (x,)) for x in range(2)], path)] == [0, 1]
    assert len(read_rows(path)) == 2
    run_jobs(square, [({"x": 9}, (9,))], path)
    assert len(read_rows(path)) == 3
