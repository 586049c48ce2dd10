"""SIGINT, SIGTERM and SIGHUP end ``prompts ask`` in order: what is in flight is answered, recorded, and not asked again.

Each is tried on a process of its own; SIGHUP also by closing the terminal that the process runs in.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_llm_server import FakeLLM

from llmpp_core.llm.recordings import read_recording

CODE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from own_questions import TASK, own_splits
from llmpp_book import __main__
from llmpp_book.studies import answers
from llmpp_book.studies import questions as experiments
answers.RESULTS = Path(sys.argv[2])
questions = lambda: experiments.ask_test_sets(own_splits(), {"own": TASK})
experiments.EXPERIMENTS = {"own-test": experiments.Experiment("own-test", "a test", questions)}
raise SystemExit(__main__.main(sys.argv[3:]))
"""


def start(folder: Path, url: str, **options: int) -> subprocess.Popen[bytes]:
    words = ["prompts", "ask", "own-test", "--model", "m", "--local", "vllm", "--base-url", url, "--concurrency", "3"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-c", CODE, str(Path(__file__).parent), str(folder / "results"), *words]
    return subprocess.Popen(command, env=environment, start_new_session=True, **{"stderr": subprocess.PIPE, **options})


def wait_until_asked(server: FakeLLM, process: subprocess.Popen[bytes], calls: int) -> None:
    end = time.monotonic() + 120
    while len(server.calls) < calls:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def check(folder: Path, server: FakeLLM) -> None:
    """Everything that was sent was answered whole and is recorded, and the next run asks for the rest alone."""
    asked = len(server.calls)
    assert asked < 40
    assert len(server.sent) == asked
    assert len(read_recording(folder / "results" / "own-test" / "m.jsonl").rows) == asked
    server.latency = 0.0
    assert start(folder, server.url).wait(120) == 0
    assert len(server.calls) == 40


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """Let the tests run under nohup, too: what they start would ignore SIGHUP like this process."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_in_order(tmp_path: Path, name: str) -> None:
    with FakeLLM(latency=1.0) as server:
        process = start(tmp_path, server.url)
        wait_until_asked(server, process, 3)
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + getattr(signal, name)
        assert b"stopping: waiting for the requests in flight" in err
        assert err.decode().splitlines()[-1] == "interrupted; what is finished is kept, and the same command goes on from there"
        check(tmp_path, server)


def test_a_closed_terminal_ends_a_run_in_order(tmp_path: Path) -> None:
    with FakeLLM(latency=1.0) as server:
        master, slave = pty.openpty()
        process = start(tmp_path, server.url, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        wait_until_asked(server, process, 3)
        os.close(master)
        # What the kernel sends to the processes of a terminal that is gone; this one is not theirs.
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 128 + signal.SIGHUP
        check(tmp_path, server)


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with FakeLLM(latency=0.2) as server:
            process = start(tmp_path, server.url)
            wait_until_asked(server, process, 3)
            process.send_signal(signal.SIGHUP)
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0
            assert len(server.calls) == 40
            assert b"\r" not in err
    finally:
        signal.signal(signal.SIGHUP, before)
