"""Jobs on a real cluster of two processes: the results of a serial run, whoever is killed, and what is wrong said in one line."""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_nets import reversed_task
from test_benchmark import tables

from llmpp_core import __main__, benchmark
from llmpp_core.cluster import ClusterError, connect, sent
from llmpp_core.files import read_rows
from llmpp_core.jobs import JobsLost, here, results, run_jobs
from llmpp_core.llm import Client, Settings
from llmpp_core.llm_predictor import LLMPredictor
from llmpp_core.offline_llm import OfflineEndpoint, offline_settings
from llmpp_core.space import TINY
from llmpp_core.tasks import load_task

#: A benchmark in miniature.
SMALL: dict[str, Any] = {"n": 2, "seeds": 1, "threads": 1}


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    """Two processes; the tests that kill some get others in their place."""
    with connect("local:2", timeout=120) as found:
        yield found


def workers(executor: Any) -> dict[str, int]:
    """Return the process identifiers of the workers by address."""
    client = executor._client
    client.wait_for_workers(2, timeout=120)
    return client.run(os.getpid)


def kill_when(done: Any, executor: Any, wait: float) -> threading.Thread:
    """Kill a worker a random moment after `done()` holds, from a thread."""

    def work() -> None:
        deadline = time.monotonic() + 120
        while not done() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0, wait))
        os.kill(random.choice(list(pids.values())), signal.SIGKILL)

    pids = workers(executor)
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# --- killed ------------------------------------------------------------------------------------------------------------


def trace(i: int, folder: Path) -> dict[str, int]:
    (folder / f"{i}.{time.time_ns()}").touch()
    time.sleep(0.01)
    return {"square": i * i}


def test_no_row_is_lost_or_doubled_when_a_worker_is_killed(executor: Executor, tmp_path: Path) -> None:
    path, folder = tmp_path / "rows.jsonl", tmp_path / "traces"
    folder.mkdir()
    killing = kill_when(lambda: len(read_rows(path)) > 5, executor, 0.3)
    found = run_jobs(trace, [({"i": i}, (i, folder)) for i in range(200)], path, executor=executor)
    killing.join()
    assert found == [{"i": i, "square": i * i} for i in range(200)]
    assert sorted(row["i"] for row in read_rows(path)) == list(range(200))
    # No more ran twice than what the worker had under way or not handed over yet.
    assert 200 <= len(list(folder.iterdir())) <= 210


def test_a_benchmark_comes_to_the_same_when_a_worker_is_killed(executor: Executor, tmp_path: Path) -> None:
    # The workers know no task of this name, and what they read and write is nowhere near what is here.
    task = reversed_task()
    alone, farm = tmp_path / "alone", tmp_path / "farm"
    assert benchmark.measure(task, alone / "checkpoints", results=alone, **SMALL)
    rows = farm / f"{task.name}.jsonl"
    killing = kill_when(lambda: rows.exists(), executor, 2.0)
    assert benchmark.measure(task, farm / "checkpoints", results=farm, executor=executor, **SMALL)
    killing.join()
    assert tables(farm) == tables(alone)
    assert len(list((farm / "checkpoints").iterdir())) == 4


def test_labels_are_the_same_when_a_worker_is_killed(executor: Executor, tmp_path: Path) -> None:
    archs, scores = TINY.sample_balanced(210, np.random.default_rng(0)), np.linspace(20, 30, 10)
    task = load_task("synthetic").prompt_task()
    with OfflineEndpoint() as url:
        alone = Client(offline_settings(url), cache=tmp_path / "alone.sqlite3")
        farm = Client(offline_settings(url), cache=tmp_path / "farm.sqlite3", executor=executor)
        killing = kill_when(lambda: farm.counts.answered > 0, executor, 0.3)
        expected = LLMPredictor(alone, task).fit(archs[:10], scores).predict(archs[10:])
        found = LLMPredictor(farm, task).fit(archs[:10], scores).predict(archs[10:])
        killing.join()
    np.testing.assert_array_equal(found, expected)
    assert farm.counts.answered == farm.counts.requests == len(farm.cache) == 200
    # Nothing is asked twice.
    assert LLMPredictor(farm, task).fit(archs[:10], scores).predict(archs[10:]).tolist() == expected.tolist()
    assert farm.counts.requests == 200
