"""Jobs on a real cluster of two processes: the results of a serial run, whoever is killed, and what is wrong said in one line."""

from __future__ import annotations

import genericpath
import importlib.metadata
import importlib.util
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
from dask import config
from distributed import LocalCluster
from killing import run_interrupted

from llmpp_core.jobs.cluster import ClusterError, _SameVersion, _versions, connect, require_shared, sent_once
from llmpp_core.jobs.files import read_rows
from llmpp_core.jobs.table import JobsLost, Table, results


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    """Two processes; the tests that kill some get others in their place."""
    # Forked, they start at once; dask would have another one import less.
    with config.set({"distributed.worker.multiprocessing-method": "forkserver"}), connect("local:2", timeout=120) as found:
        yield found


def workers(executor: Any) -> dict[str, int]:
    """Return the process identifiers of the workers by address."""
    deadline = time.monotonic() + 120
    # One that has just been killed may be counted for a moment.
    while len(found := executor._client.run(os.getpid, on_error="ignore")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def kill_when(done: Any, executor: Any, wait: float, left: Any) -> tuple[threading.Thread, list[Any]]:
    """Kill a worker a random moment after `done()` holds, from a thread; returns it, and what `left()` was just before, once it is over."""
    found: list[Any] = []

    def work() -> None:
        deadline = time.monotonic() + 120
        while not done() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0, wait))
        found.append(left())
        os.kill(random.choice(list(pids.values())), signal.SIGKILL)

    pids = workers(executor)
    thread = threading.Thread(target=work)
    thread.start()
    return thread, found


# --- killed ------------------------------------------------------------------------------------------------------------


def trace(i: int, folder: Path) -> dict[str, int]:
    (folder / f"{i}.{time.time_ns()}").touch()
    time.sleep(0.01)
    return {"square": i * i}


class Named:
    """An executor whose jobs bear the number that is their first argument, by which the scheduler knows them."""

    def __init__(self, executor: Any):
        self.executor = executor

    def submit(self, work: Any, i: int, *arguments: Any) -> Any:
        return self.executor.submit(work, i, *arguments, key=str(i))


def test_no_row_is_lost_or_doubled_when_a_worker_is_killed(executor: Any, tmp_path: Path) -> None:
    path, folder = tmp_path / "rows.jsonl", tmp_path / "traces"
    folder.mkdir()

    def over() -> list[int]:
        """Return the jobs whose rows are written and whose results the cluster has let go, for what it holds it makes again."""
        rows = [row["i"] for row in read_rows(path)]
        held = executor._client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
        return [i for i in rows if str(i) not in held]

    killing, left = kill_when(lambda: len(over()) > 5, executor, 0.3, over)

    def slow(row: Any) -> None:
        """Be a slow disk, so that there are always finished jobs not yet written, and do not get to the end before the kill."""
        time.sleep(0.01)
        if row["i"] == 60:
            killing.join()

    found = Table(path).run(trace, [({"i": i}, (i, folder)) for i in range(100)], executor=Named(executor), written=slow)
    assert 5 < len(left[0]) < 100
    assert found == [{"i": i, "square": i * i} for i in range(100)]
    assert sorted(row["i"] for row in read_rows(path)) == list(range(100))
    # What was over before the kill did not run again; what the worker had under way, or had not handed over yet, may have.
    runs = Counter(int(path.name.split(".")[0]) for path in folder.iterdir())
    assert len(runs) == 100
    assert {runs[i] for i in left[0]} == {1}


def test_tasks_and_files_reach_every_worker_also_one_that_comes_later(executor: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("inside")
    sent = sent_once(executor, {"a": "task"})
    read = [({"i": i}, (i, tmp_path / "file", sent)) for i in range(4)]
    assert [row["found"] for row in Table(tmp_path / "before.jsonl").run(look, read[:2], executor=executor)] == [["inside", "task"]] * 2
    for pid in (before := workers(executor)).values():
        os.kill(pid, signal.SIGKILL)
    while set(before.values()) & set(workers(executor).values()):
        time.sleep(0.02)
    assert [row["found"] for row in Table(tmp_path / "after.jsonl").run(look, read, executor=executor)] == [["inside", "task"]] * 4
    require_shared(executor, tmp_path)
    executor._client.run(lambda: setattr(genericpath, "exists", lambda path: False), workers=[max(workers(executor))])
    with pytest.raises(ClusterError, match=rf"^worker tcp://.* does not see {tmp_path}; choose a folder that all machines share$"):
        require_shared(executor, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after.jsonl", "before.jsonl", "file"]
    os.kill(workers(executor)[max(workers(executor))], signal.SIGKILL)


def look(i: int, path: Path, task: dict[str, str]) -> dict[str, Any]:
    return {"found": [path.read_text(), task["a"]]}


# --- interrupted -------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from llmpp_book import __main__
from llmpp_core.jobs.cluster import connect
from llmpp_core.jobs.table import Table

def nap(i):
    time.sleep(0.01)
    return {"square": i * i}

def work(args):
    with connect("local:2", timeout=120) as executor:
        Table(sys.argv[1]).run(nap, [({"i": i}, (i,)) for i in range(400)], executor=executor)
    return 0

if __name__ == "__main__":
    __main__._fetch = work
    sys.exit(__main__.main(["fetch"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_ends_with_its_workers_and_keeps_what_is_finished(number: int, tmp_path: Path) -> None:
    kept = run_interrupted(SCRIPT, tmp_path, number)
    assert len(kept) == len(set(kept)) >= 20


# --- what is wrong -----------------------------------------------------------------------------------------------------


ADDRESSES = ["local:0", "local:many", "local", "http://127.0.0.1:1", "nowhere", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "tls://127.0.0.1:9"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match=rf"^cluster address '{address}': expected local:N .*or tcp://HOST:PORT"), connect(address):
        pass


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * 20])
def test_something_else_at_the_address_is_found_out(reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            other, _ = server.accept()
            other.sendall(reply)
            time.sleep(3)
            other.close()

        threading.Thread(target=answer, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"^the scheduler {address} does not answer") as caught, connect(address, timeout=1):
            pass
    assert "\n" not in str(caught.value)
    # Now nobody listens there.
    with pytest.raises(ClusterError, match=f"^the scheduler {address} does not answer: .+$"), connect(address, timeout=1):
        pass


def test_a_worker_with_another_version_is_refused_and_named(executor: Any) -> None:
    client = executor._client
    pids = workers(executor)
    address, name = client.scheduler.address, max(pids)

    def patch(version: str | None) -> None:
        own = importlib.metadata.Distribution.version
        importlib.metadata.version = lambda name: (
            version if version and name == "torch" else own.fget(importlib.metadata.distribution(name))
        )

    client.run(patch, "1.0", workers=[name])
    with pytest.raises(ClusterError, match=rf"^worker {name} has torch 1\.0, not \d.*; install there what is here$"), connect(address):
        pass
    client.run(patch, None)
    client.run(lambda: setattr(importlib.util, "find_spec", lambda name: None), workers=[name])
    with pytest.raises(ClusterError, match=rf"^worker {name} has llmpp_core none, not [0-9a-f]{{12}}; llmpp_book none"), connect(address):
        pass
    os.kill(pids[name], signal.SIGKILL)


def in_process(**options: Any) -> LocalCluster:
    """Return a cluster that starts at once, without processes of its own."""
    return LocalCluster(processes=False, dashboard_address="127.0.0.1:0", **{"n_workers": 1, "threads_per_worker": 1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads_per_worker": 2}, r"^worker inproc:.* runs 2 jobs in one process; start it with --nthreads 1$"),
        ({}, r'^no worker has 1 GPU; start those that do with --resources "GPU=1"$'),
        ({"n_workers": 0}, r"^the cluster inproc:.* has no worker after 3 s$"),
    ],
)
def test_workers_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    with in_process(**options) as found, pytest.raises(ClusterError, match=message):  # noqa: SIM117
        with connect(found.scheduler_address, timeout=3, resources={"GPU": 1}):
            pass


def test_workers_of_another_version_that_come_later_are_sent_away_and_without_any_jobs_are_given_up(tmp_path: Path) -> None:
    def work() -> None:
        with connect("local:1", timeout=120, patience=0.5, resources={"GPU": 1}) as executor:
            assert Table(tmp_path / "rows.jsonl").run(dict, [({"i": 1}, ())], executor=executor) == [{"i": 1}]
            executor._client.register_plugin(_SameVersion({"torch": "of another time"}))  # type: ignore[attr-defined]
            Table(tmp_path / "rows.jsonl").run(dict, [({"i": i}, ()) for i in range(3)], executor=executor)

    with pytest.raises(ClusterError, match=r"^the cluster local:1 had no worker for 0\.5 s; what is finished is kept$"):
        work()
    assert read_rows(tmp_path / "rows.jsonl") == [{"i": 1}]


def test_a_job_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    with (
        config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(ClusterError, match=r"^1 workers died of the same job, the last one tcp://127\.0\.0\.1:\d+; it may need more memory"),
        connect("local:1", timeout=120) as executor,
    ):
        Table(tmp_path / "rows.jsonl").run(os._exit, [({"i": 1}, (1,))], executor=executor)


def test_a_lost_connection_is_said_and_not_taken_for_the_end(tmp_path: Path) -> None:
    found = in_process()
    with connect(found.scheduler_address, timeout=5) as executor:
        for _ in results(time.sleep, [("short", (0,))], executor):
            closing = threading.Timer(0, found.close)
        closing.start()
        with pytest.raises(JobsLost, match="the executor gave up jobs"):
            Table(tmp_path / "rows.jsonl").run(time.sleep, [({"i": i}, (1,)) for i in range(100)], executor=executor)
    closing.join()


def test_any_change_of_the_code_is_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = _versions()(), Path.read_bytes
    for name in ("llmpp_core/jobs/table.py", "llmpp_core/llm/templates", "llmpp_book/studies/searches.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=name: read(path) + b"#" * (name in path.as_posix()))
        after = _versions()()
        assert [key for key in before if before[key] != after[key]] == [name.partition("/")[0]]
