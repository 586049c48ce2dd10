"""The client's promises: nothing is paid for twice, no answer is lost, and the key is nowhere."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sqlite3
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import cloudpickle
import openai  # noqa: F401  (before processes fork, so that they start at once)
import pytest
from fake_llm_server import Act, FakeLLM, answer_to, completion, make_client, ok, prompt

from llmpp_core.llm.batches import write_batches
from llmpp_core.llm.cache import Cache, Stored
from llmpp_core.llm.client import Client, LLMStopped, MissingAnswers, Price, Settings
from llmpp_core.llm.recordings import Recording, Row, write_recording


def expected(*numbers: int) -> list[tuple[float]]:
    return [(float(answer_to(prompt(i).text)),) for i in numbers]


def values(answers: list[Any]) -> list[tuple[float, ...]]:
    return [answer.values for (answer,) in answers]


def test_answers_come_in_the_order_of_the_prompts_and_from_the_cache_afterwards(tmp_path: Path) -> None:
    prompts = [prompt(i) for i in (3, 1, 2, 1)]
    changes = {"temperature": 0.5, "reasoning_effort": "low", "token_limit_field": "max_completion_tokens", "extra": {"top_k": 3}}
    with FakeLLM() as server:
        client = make_client(server.url, tmp_path, concurrency=1, **changes)
        answers = client.ask(prompts)
        assert values(answers) == expected(3, 1, 2, 1)
        assert [body for body, _ in server.calls] == [client.settings.body(prompt(i)) for i in (3, 1, 2)]
        assert make_client(server.url, tmp_path, **changes).ask(prompts) == answers
        assert len(server.calls) == 3


def test_samples_are_asked_and_kept_apart(tmp_path: Path) -> None:
    with FakeLLM(lambda body, number: Act(body=completion(f"{20 + number}"))) as server:
        client = make_client(server.url, tmp_path, concurrency=1)
        [answers] = client.ask([prompt(0)], samples=3)
        assert [a.values[0] for a in answers] == [20, 21, 22]
        [more] = client.ask([prompt(0)], samples=5)
        assert (more[:3], len(server.calls)) == (answers, 5)
        with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
            client.ask([prompt(0)], samples=0)


def test_one_is_sent_alone_and_then_as_many_as_allowed_also_while_a_loop_runs(tmp_path: Path) -> None:
    async def cell() -> list[Any]:
        return client.ask([prompt(i) for i in range(15)])

    with FakeLLM(latency=0.5) as server:
        client = make_client(server.url, tmp_path, concurrency=7)
        assert values(asyncio.run(cell())) == expected(*range(15))
        assert server.times[1] - server.times[0] >= 0.49  # A clock may tick a little early.
        assert server.most_in_flight == 7


def test_the_estimate_sends_nothing_and_bounds_the_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [prompt(i) for i in range(5)]
    price = Price(3.0, 15.0, "2026-01-01", "EUR")
    with FakeLLM() as server:
        client = make_client(server.url, tmp_path, price=price)
        client.progress = True
        before = client.estimate(prompts, samples=2)
        assert not server.calls
        assert (before.requests, before.answered, before.answer_tokens) == (10, 0, 250)
        assert before.cost == pytest.approx(price.of(before.prompt_tokens, before.answer_tokens))
        assert str(before).startswith("10 requests to send, 0 already answered; about ")
        shown = float(str(before).removesuffix(" EUR").rpartition("at most ")[2])
        assert before.cost <= shown < before.cost + 0.01
        client.ask(prompts)
    after = client.estimate(prompts, samples=2)
    assert (after.answered, after.prompt_tokens) == (5, before.prompt_tokens // 2)
    assert client.budget.spent == pytest.approx(price.of(client.budget.prompt_tokens, client.budget.answer_tokens))
    shown = capsys.readouterr()
    assert "answered=5, invalid=0" in shown.err
    assert "fake: 5 requests, 5 answered, 0 of them invalid, 0 failed" in shown.out


def test_replay_needs_no_key_opens_no_socket_and_lists_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("m", "https://llm.invalid/v1")
    recorded = {settings.key(prompt(0)): Stored('{"choices": [{"message": {"content": "25.5"}}]}', None)}

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    client = Client(settings, cache=tmp_path / "c", recordings=recorded, mode="replay")
    assert values(client.ask([prompt(0)])) == [(25.5,)]
    with pytest.raises(MissingAnswers, match=r"2 answers of m are not recorded, the first: .* \(number 1\)") as missing:
        client.ask([prompt(0), prompt(1), prompt(2)])
    assert [job.prompt for job in missing.value.jobs] == [prompt(1), prompt(2)]
    assert not (tmp_path / "c").exists()
    with pytest.raises(ValueError, match="unknown mode 'x'; allowed are live, replay"):
        Client(settings, mode="x")


def test_requests_with_a_fifth_of_faults_all_settle_once(tmp_path: Path) -> None:
    rng, text = random.Random(1), completion(usage={"prompt_tokens": 1000, "completion_tokens": 4})
    faults = [
        Act(429, {"error": {"code": "rate_limit_exceeded"}}, {"retry-after-ms": "5"}),
        *[Act(429, {"error": {"code": "overloaded"}}), Act(500, b"oops"), Act(502, b"<html>"), Act(503, b"")],
        *[Act(how="reset"), Act(200, text, how="truncate"), Act(200, b"<html>hello</html>"), Act(200, b'{"choices": [{')],
        *[Act(200, {"error": {"message": "later"}}), Act(200, {"choices": None})],
    ]
    prompts = [prompt(i) for i in range(150)]
    with FakeLLM(lambda body, number: rng.choice(faults) if rng.random() < 0.2 else ok(body, number)) as server:
        client = make_client(server.url, tmp_path, concurrency=64, deadline=600.0, retries=12)
        answers = client.ask(prompts)
        assert values(answers) == expected(*range(150))
        assert len(client.cache) == client.counts.answered == 150
        # No request was asked again once its answer had been sent whole, and a second run asks nothing.
        assert set(Counter(server.sent).values()) == {1}
        calls = len(server.calls)
        assert client.ask(prompts) == answers
        assert len(server.calls) == calls > 165


def _fork(url: str, folder: Path, n: int) -> Any:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that fork")
    work = lambda: make_client(url, folder, concurrency=8).ask([prompt(i) for i in range(n)])  # noqa: E731
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_kill_9_at_random_moments_loses_no_answer(tmp_path: Path) -> None:
    n, rng, kept = 200, random.Random(0), dict[str, str]()
    with FakeLLM(latency=0.01) as server:
        for _ in range(3):
            before = len(server.calls)
            process = _fork(server.url, tmp_path, n)
            while len(server.calls) < before + 2:  # Of which the first is answered and kept.
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert not set(server.prompts()[before:]) & set(kept)  # Nothing that was kept is asked again.
            read = "SELECT text || query, response FROM answers JOIN texts ON prefix = texts.sha256"
            now = dict(sqlite3.connect(tmp_path / "c").execute(read).fetchall())
            assert kept.items() <= now.items()
            kept = now
        before = len(server.calls)
        assert values(make_client(server.url, tmp_path).ask([prompt(i) for i in range(n)])) == expected(*range(n))
        assert len(server.calls) - before == n - len(kept) < n


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_two_processes_on_one_cache_lose_nothing_and_pay_once(tmp_path: Path) -> None:
    with FakeLLM(latency=0.01) as server:
        processes = [_fork(server.url, tmp_path, 100) for _ in range(2)]
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert sorted(server.prompts()) == sorted(prompt(i).text for i in range(100))
    assert len(Cache(tmp_path / "c")) == 100


def test_ctrl_c_waits_for_what_is_paid_for(tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        if body["messages"][0]["content"] == prompt(7).text:
            os.kill(os.getpid(), signal.SIGINT)
        return ok(body, number)

    with FakeLLM(script, latency=0.1) as server:
        client = make_client(server.url, tmp_path, concurrency=4)
        with pytest.raises(KeyboardInterrupt):
            client.ask([prompt(i) for i in range(100)])
        assert 1 < len(client.cache) == len(server.calls) < 30


def test_a_full_disk_stops_the_run_and_keeps_what_is_there(tmp_path: Path) -> None:
    with FakeLLM() as server:
        client = make_client(server.url, tmp_path)
        client.ask([prompt(i) for i in range(5)])
        pages = client.cache._db.execute("PRAGMA page_count").fetchone()[0]
        client.cache._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(LLMStopped, match="cannot be used: database or disk is full; what it holds is kept"):
            client.ask([prompt(i) for i in range(200)])
        kept, calls = len(client.cache), len(server.calls)
        assert 5 <= kept < 100
        assert calls - kept <= 16
        make_client(server.url, tmp_path).ask([prompt(i) for i in range(100)])  # The disk has room again.
        assert len(server.calls) == calls + 100 - kept


def test_copies_share_the_client_and_a_free_one_travels_with_settings_recordings_and_cache(tmp_path: Path) -> None:
    with FakeLLM() as server:
        settings = Settings("fake", server.url, key_variable=None)
        recorded = {settings.key(prompt(1)): Stored('{"choices": [{"message": {"content": "99.5"}}]}', None)}
        client = Client(settings, cache=tmp_path / "c", recordings=recorded)
        client.ask([prompt(0)])
        assert copy.copy(client) is copy.deepcopy(client) is client
        for pickler in (pickle, cloudpickle):
            other = pickle.loads(pickler.dumps(client))
            assert (other.settings, other.mode, other.counts.answered) == (settings, "live", 0)
            assert values(other.ask([prompt(0), prompt(1), prompt(2)])) == [*expected(0), (99.5,), *expected(2)]
        assert len(server.calls) == 2


@pytest.mark.parametrize(
    "limits",
    [
        *({"price": Price(1, 1, "2026-01-01"), "budget": 1.0}, {"token_cap": 10**6}, {"requests_per_minute": 60.0}),
        *({"tokens_per_minute": 1e6}, {"base_url": "https://llm.invalid/v1"}),
    ],
)
def test_a_client_that_something_limits_does_not_travel_and_says_why(tmp_path: Path, limits: dict[str, Any]) -> None:
    settings = Settings("m", **{"base_url": "http://127.0.0.1:1/v1", **limits})
    with pytest.raises(ValueError, match=r"m costs money or has limits, which only one process can keep: .*n_jobs=1"):
        pickle.dumps(Client(settings, cache=tmp_path / "c"))
    # One that never asks may: it cannot exceed anything.
    with pytest.raises(MissingAnswers):
        pickle.loads(pickle.dumps(Client(settings, cache=tmp_path / "c", mode="replay"))).ask([prompt(0)])


def test_the_key_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    planted = "sk-planted-0123456789abcdef"
    monkeypatch.setenv("MY_KEY", planted)
    caplog.set_level(logging.DEBUG)

    def script(body: dict[str, Any], number: int) -> Act:
        received = server.calls[-1][1]["authorization"]
        said = {1: completion("25"), 2: completion(f"your key is {received}")}.get(len(server.calls))
        return Act(body=said) if said else Act(401, {"error": {"message": f"wrong key {received}"}})

    with FakeLLM(script) as server:
        client = make_client(server.url, tmp_path, key_variable="MY_KEY", concurrency=1, retries=0)
        client.ask([prompt(0)])
        [[answer]] = client.ask([prompt(1)])
        with pytest.raises(LLMStopped) as stopped:
            client.ask([prompt(2)])
        assert server.calls[0][1]["authorization"] == f"Bearer {planted}"
    assert answer.text == "your key is Bearer [key]"
    assert math.isnan(answer.values[0])
    rows = {key: Row({}, i, client.lookup(key)) for i in range(2) if (key := client.job(prompt(i)).key)}
    write_recording(Recording(tmp_path / "recording.jsonl", "x", client.settings, rows))
    write_batches([client.job(prompt(3))], client.settings, tmp_path / "batch", "x")
    # Without this test's own frame, which knows the key.
    inner = stopped.value.with_traceback(stopped.value.__traceback__.tb_next)
    shown = [
        *("".join(traceback.TracebackException.from_exception(inner, capture_locals=True).format()), str(stopped.value)),
        *(caplog.text, client.summary(), repr(client.__dict__), repr(client.settings), repr(answer)),
    ]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not any(planted in text for text in shown)
    assert not any(planted.encode() in data for data in files)
