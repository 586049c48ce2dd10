"""Tables: each row is written once and says what it was made from, whatever the executor, and whatever is killed or fails."""

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
from killing import run_killed

from llmpp_core.jobs.files import append_rows, read_rows
from llmpp_core.jobs.table import Table, differences, end_with_parent


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
        self.given.append((Future(), work, arguments))
        if len(self.given) == self.n:
            for waiting, job, values in self.given[::-1]:
                waiting.set_result(job(*values))
        return self.given[-1][0]


# --- every job once ---------------------------------------------------------------------------------------------------


def test_rows_are_the_same_with_every_executor(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads, ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as processes:
        for name, executor in {"none": None, "threads": threads, "processes": processes, "backwards": Backwards(20)}.items():
            table = Table(tmp_path / name / "rows.jsonl")
            assert table.run(square, jobs(20), executor=executor) == rows(20)
            assert sorted(table.rows(), key=lambda row: row["i"]) == rows(20)


def test_jobs_that_have_a_row_are_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, called, told = Table(tmp_path / "rows.jsonl"), [], []

    def work(i: int) -> dict[str, int]:
        # What is done is on the disk, and only then told.
        assert len(table.rows()) == len(told) == len(called)
        called.append(i)
        return square(i)

    table.run(work, jobs(4), written=told.append)
    assert table.run(work, jobs(7), written=told.append, progress="squares") == rows(7)
    assert table.run(work, jobs(2)) == rows(2)
    # The key counts, not the order of its fields, nor what else a row holds.
    assert table.run(work, [({"i": i, "name": key["name"]}, (i,)) for key, (i,) in jobs(7)]) == rows(7)
    assert table.run(work, []) == []
    assert called == list(range(7))
    assert told == table.rows() == rows(7)
    assert "squares: 100%| 7/7" in capsys.readouterr().err
    nested = Table(tmp_path / "nested.jsonl")
    for key in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        nested.run(square, [({"arch": key}, (3,))])
    assert len(nested.rows()) == 1
    with pytest.raises(ValueError, match="jobs: two have the same key"):
        table.run(square, [*jobs(3), jobs(2)[1]])


def test_jobs_without_a_result_are_run_again(tmp_path: Path) -> None:
    table = Table(tmp_path / "rows.jsonl")
    assert table.run(lambda i: None if i % 3 else square(i), jobs(9)) == table.rows() == rows(9)[::3]
    assert table.run(square, jobs(9)) == rows(9)


# --- what rows are made from ------------------------------------------------------------------------------------------

MADE = {"data": "abc", "recipe": {"updates": 2, "space": (1, 2)}}
EARLIER = {"data": "abc", "recipe": {"accumulate": 1, "compile": False}}


def test_rows_say_what_they_were_made_from_and_others_are_refused(tmp_path: Path) -> None:
    table = Table(tmp_path / "rows.jsonl", MADE, EARLIER)
    table.run(square, jobs(1))
    assert table.rows() == [{**rows(1)[0], "data": "abc", "recipe": {"updates": 2, "space": [1, 2]}}]
    for changed, message in (
        ({"data": "x"}, "data is abc there and x here"),
        ({"recipe": {"updates": 3, "space": (1, 2)}}, r"recipe\.updates is 2 there and 3 here"),
        ({"recipe": {**MADE["recipe"], "accumulate": 2}}, r"recipe\.accumulate is 1 there and 2 here"),
        ({"device": "gpu"}, "device is None there and gpu here"),
    ):
        other = Table(table.path, {**MADE, **changed}, EARLIER)
        for call in (other.rows, other.given_up, other.frame, lambda other=other: other.run(square, jobs(2))):
            with pytest.raises(ValueError, match=rf"rows\.jsonl:1: made from something else: {message}; move the file away"):
                call()
    # What one side says of a field that the other has no word for is what it always was, and of other columns nothing is asked.
    assert Table(table.path, {"recipe": {**MADE["recipe"], "accumulate": 1}}, EARLIER).rows() == table.rows()
    append_rows(table.path, [{"recipe": {**MADE["recipe"], "compile": False}}])
    assert len(table.rows()) == 2
    append_rows(table.path, [{"recipe": {**MADE["recipe"], "compile": True}}])
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: .*recipe\.compile is True there and False here"):
        table.rows()


def test_all_that_differs_is_named_and_cut_short() -> None:
    assert differences({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [1]}, "d": 2}) == ""
    found = differences({"a": {"b": 1}, "d": "x" * 99}, {"a": {"b": 2}, "e": 0, "d": "\n y"})
    assert found == f"a.b is 1 there and 2 here; d is {'x' * 37}... there and y here; e is None there and 0 here"


def test_a_table_is_read_as_a_frame_with_those_given_up_apart(tmp_path: Path) -> None:
    table = Table(tmp_path / "rows.jsonl")
    assert table.rows() == table.given_up() == []
    with pytest.raises(ValueError, match=r"rows\.jsonl is not there or empty; measure it with: llmpp x"):
        table.frame("llmpp x")
    table.append([{"i": 0, "diverged": None}, {"i": 1, "diverged": "nan"}, {"i": 2}])
    assert table.frame()["i"].tolist() == [0, 1, 2]
    assert table.given_up() == [{"i": 1, "diverged": "nan"}]


# --- failures ---------------------------------------------------------------------------------------------------------


class Noted(ThreadPoolExecutor):
    """Keeps the futures of what it was given."""

    def __init__(self) -> None:
        super().__init__(2)
        self.futures: list[Future] = []

    def submit(self, *arguments: Any, **_: Any) -> Future:  # type: ignore[override]
        self.futures.append(super().submit(*arguments))
        return self.futures[-1]


@pytest.mark.parametrize("threads", [False, True])
def test_a_failing_job_loses_no_row_of_the_others(threads: bool, tmp_path: Path) -> None:
    table, started, deadline = Table(tmp_path / "rows.jsonl"), [], time.monotonic() + 30

    def work(i: int) -> dict[str, int]:
        started.append(i)
        if i == 3:
            raise RuntimeError("no memory")
        while i > 3 and not pool.futures[-1].cancelled() and time.monotonic() < deadline:
            time.sleep(0.001)
        return square(i)

    with Noted() as pool:
        executor = pool if threads else None
        with pytest.raises(RuntimeError, match="no memory"):
            table.run(work, jobs(40), executor=executor)
        # What was under way is finished and kept; what had not begun does not begin.
        assert sorted([*(row["i"] for row in table.rows()), 3]) == sorted(started)
        assert set(range(4)) <= set(started) <= set(range(6))
        assert table.run(square, jobs(40), executor=executor) == rows(40)
    assert len(table.rows()) == 40


def test_a_damaged_table_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "b", "i": 0, "square": 0}\nrubbish\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not a JSON object"):
        Table(path).run(square, jobs(3))
    assert path.read_text().endswith("rubbish\n")


# --- killed -----------------------------------------------------------------------------------------------------------


def run_slowly(path: Path, threads: int) -> None:
    def work(i: int) -> dict[str, Any]:
        time.sleep(0.002)
        return {**square(i), "long": "x" * 20_000}

    with ThreadPoolExecutor(max(1, threads)) as pool:
        Table(path).run(work, jobs(100), executor=pool if threads else None)


@pytest.mark.parametrize("threads", [0, 3])
def test_no_row_is_lost_or_doubled_when_it_is_killed_again_and_again(threads: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    run_killed(run_slowly, (path, threads), tmp_path, kills=3, rng=np.random.default_rng(threads))
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["i"] for row in found) == list(range(100))
    assert all(row["square"] == row["i"] ** 2 and len(row["long"]) == 20_000 for row in found)


def run_in_processes(folder: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("fork"), initializer=end_with_parent) as pool:
        Table(folder / "rows.jsonl").run(leave_a_trace, [({"i": i}, (i, folder)) for i in range(1000)], executor=pool)


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
    stat = Path(f"/proc/{pid}/stat")
    # One that has ended may wait for somebody to take notice.
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_two_processes_do_not_add_to_one_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def rival(x: int) -> dict[str, int]:
        for call in (lambda: Table(path).run(square, [({"x": 9}, (9,))]), lambda: Table(path).append([{"x": 9}])):
            with pytest.raises(ValueError, match=r"rows\.jsonl: another process is adding to it; wait for it, or stop it"):
                call()
        # What is complete is only read.
        assert Table(path).run(square, [({"x": i}, (i,)) for i in range(x)]) == read_rows(path)
        return square(x)

    assert [row["x"] for row in Table(path).run(rival, [({"x": x}, (x,)) for x in range(2)])] == [0, 1]
    Table(path).run(square, [({"x": 9}, (9,))])
    assert len(read_rows(path)) == 3
    assert list(tmp_path.iterdir()) == [path], "nothing is left of the lock"
