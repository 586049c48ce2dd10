"""Every row of the client's fault table, against a server that misbehaves."""

from __future__ import annotations

import datetime
import email.utils
import math
import time
from pathlib import Path
from typing import Any

import pytest
from fake_llm_server import Act, FakeLLM, completion, ok, prompt

from llmpp_core.llm.client import Client, LLMStopped, Settings
from llmpp_core.llm.faults import retry_after


def make_client(server: FakeLLM, folder: Path, **changes: Any) -> Client:
    settings = {"base_url": server.url, "key_variable": None, "token_cap": 10**9, "backoff": 0.001, "deadline": 5.0, "retries": 3} | changes
    return Client(Settings("fake", **settings), cache=folder / "cache.sqlite3")


def once(act: Act) -> Any:
    """Misbehave at the first call of each request and answer the next."""
    return lambda body, number: act if number == 0 else ok(body, number)


def error(message: str = "no", code: str = "", kind: str = "") -> dict[str, Any]:
    return {"error": {"message": message, "code": code, "type": kind}}


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "overloaded"])
@pytest.mark.parametrize("header", ["seconds", "milliseconds", "date", "absent"])
def test_429_waits_as_told_and_succeeds(tmp_path: Path, header: str, code: str) -> None:
    date = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1), usegmt=True)
    headers = {
        "seconds": {"Retry-After": "0.2"},
        "milliseconds": {"retry-after-ms": "200"},
        "date": {"Retry-After": date},
        "absent": {},
    }[header]
    with FakeLLM(once(Act(429, error(code=code), headers))) as server:
        client = make_client(server, tmp_path)
        started = time.monotonic()
        [[answer]] = client.ask([prompt(0)])
        assert answer.status == "answered"
        assert len(server.calls) == 2
        if header in ("seconds", "milliseconds"):
            assert time.monotonic() - started >= 0.2


def test_retry_after_forms() -> None:
    assert retry_after({}) is None
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0


@pytest.mark.parametrize(("code", "headers", "shared"), [
    ("rate_limit_exceeded", {}, True),
    ("", {"x-ratelimit-remaining-tokens": "0"}, True),
    ("overloaded", {}, False),
])  # fmt: skip
def test_only_an_account_level_429_holds_back_all_calls(tmp_path: Path, code: str, headers: dict[str, str], shared: bool) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        limited = number == 0 and body["messages"][0]["content"].endswith("number 5")
        return Act(429, error(code=code), {"Retry-After": "1.0", **headers}) if limited else ok(body, number)

    with FakeLLM(script, latency=0.02) as server:
        make_client(server, tmp_path, concurrency=2).ask([prompt(i) for i in range(40)])
    limited = next(time for text, time in zip(server.prompts(), server.times, strict=True) if text.endswith("number 5"))
    early = sum(limited < time < limited + 0.5 for time in server.times)
    late = sum(limited + 0.5 < time < limited + 1.0 for time in server.times)
    assert (early <= 2 and late == 0) if shared else early + late > 5


@pytest.mark.parametrize(
    "act",
    [
        Act(429, error("slow down"), {"Retry-After": "3600"}),
        Act(429, error("pay first", "insufficient_quota")),
        Act(200, error("pay first", "insufficient_quota")),
        *[
            Act(status, error("not like this"))
            for status in (400, 401, 402, 403, 404, 405, 406, 410, 413, 415, 422, 426, 451, 501, 505, 511)
        ],
        # As DeepSeek, Moonshot and others say that the account is empty; a gateway's status inside a 200; a list, as Gemini sends it.
        Act(402, error("Insufficient Balance", "invalid_request_error", "unknown_error")),
        Act(429, error("pay first", "exceeded_current_quota_error")),
        Act(503, error("pay first", kind="insufficient_balance")),
        Act(200, {"error": {"message": "402: no credits", "code": 402}}),
        Act(429, [error("pay first; 429", "insufficient_quota")]),
        Act(301, b"", {"Location": "http://127.0.0.1:1/v1/chat/completions"}),
    ],
    ids=lambda act: f"{act.status}-{act.headers or act.body}",
)
def test_hopeless_errors_stop_after_one_call_with_the_reason(tmp_path: Path, act: Act) -> None:
    with FakeLLM(lambda body, number: act) as server:
        client = make_client(server, tmp_path)
        with pytest.raises(LLMStopped) as stopped:
            client.ask([prompt(i) for i in range(30)])
        assert len(server.calls) == 1
        assert len(client.cache) == 0
    message = str(stopped.value)
    assert "\n" not in message
    assert server.url in message
    assert "0 of 30 requests answered" in message
    assert str(act.status) in message
    if isinstance(act.body, dict):
        assert act.body["error"]["message"] in message


TRANSIENT = {
    "500": Act(500, error()),
    "502": Act(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}),
    "503": Act(503, error("overloaded")),
    "html": Act(200, b"<html>Welcome to the hotel network</html>", {"Content-Type": "text/html"}),
    "reset": Act(how="reset"),
    "truncated": Act(200, completion(), how="truncate"),
    "invalid json": Act(200, b'{"choices": ['),
    "no object": Act(200, b"[]"),
    "error inside 200": Act(200, error("try later")),
    "null choices": Act(200, {"choices": None}),
    "no choices": Act(200, {"choices": []}),
    "null message": Act(200, {"choices": [{"message": None}]}),
    "generation failed": Act(424, error("Request failed during generation")),
    "client left": Act(499, error("gave up")),
    "no code": Act(200, {"error": "overloaded"}),
    "429 of a gateway inside 200": Act(200, {"error": {"message": "rate limited", "code": 429}}),
    # The choice says that the server failed.
    **{f"finish_reason {reason}": Act(200, completion("", reason)) for reason in ("error", "abort", "load")},
    "nothing in no tokens": Act(200, completion(None, usage={"prompt_tokens": 20, "completion_tokens": 0})),
}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_passing_faults_are_retried_and_never_cached(tmp_path: Path, fault: str) -> None:
    with FakeLLM(once(TRANSIENT[fault])) as server:
        client = make_client(server, tmp_path)
        [[answer]] = client.ask([prompt(0)])
        assert answer.status == "answered"
        assert len(server.calls) == 2
        assert client.counts.retries == 1
        assert len(client.cache) == 1


@pytest.mark.parametrize("fault", TRANSIENT)
def test_retries_are_bounded_and_a_lasting_fault_is_not_cached(tmp_path: Path, fault: str) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        return TRANSIENT[fault] if body["messages"][0]["content"].endswith("number 1") else ok(body, number)

    with FakeLLM(script) as server:
        client = make_client(server, tmp_path)
        good, bad = client.ask([prompt(0), prompt(1)])
        assert good[0].status == "answered"
        assert bad[0].status == "failed"
        assert bad[0].reason
        assert math.isnan(bad[0].values[0])
        assert len(server.calls) == 1 + 4
        assert len(client.cache) == 1
        client.ask([prompt(0), prompt(1)])
        assert len(server.calls) == 1 + 4 + 4  # Only the failed one is asked again.


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_call_ends_at_its_deadline_is_retried_and_charged(tmp_path: Path, how: str) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        late = number == 0 and body["messages"][0]["content"].endswith("number 1")
        return Act(200, completion(), how=how) if late else ok(body, number)

    with FakeLLM(script) as server:
        client = make_client(server, tmp_path, deadline=1.0)
        client.ask([prompt(0)])
        before = client.budget.prompt_tokens
        started = time.monotonic()
        [[answer]] = client.ask([prompt(1)])
        assert answer.status == "answered"
        assert 1.0 <= time.monotonic() - started < 10.0
        assert client.counts.estimated == 1
        # Both calls were charged: the answered one by the server's count, the other by estimate.
        assert client.budget.prompt_tokens - before > answer.prompt_tokens
        assert client.budget.answer_tokens == 4 + 4 + 25


def test_missing_usage_is_estimated_and_flagged(tmp_path: Path) -> None:
    with FakeLLM(lambda body, number: Act(200, completion(usage=None))) as server:
        client = make_client(server, tmp_path)
        [[answer]] = client.ask([prompt(0)])
    assert answer.prompt_tokens is None
    assert client.budget.prompt_tokens > 10
    assert client.counts.estimated == 1
    assert "1 calls charged by estimate" in client.summary()


def test_an_allowance_spent_on_reasoning_is_named_not_cached_and_stops_the_run(tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        text = body["messages"][0]["content"]
        return ok(body, number) if text.endswith("number 0") else Act(200, completion("", "length", prompt=text))

    with FakeLLM(script) as server:
        client = make_client(server, tmp_path, max_failures=3, concurrency=1)
        with pytest.raises(LLMStopped, match=r"3 requests failed in a row.*all 25 tokens allowed went on reasoning.*answer_tokens"):
            client.ask([prompt(i) for i in range(10)])
        assert len(server.calls) == 4
        assert len(client.cache) == 1
        assert client.budget.answer_tokens == 16


INVALID = {
    "prose": completion("Somewhere above 25.3 BLEU."),
    "nan": completion("nan"),
    "infinity": completion("inf"),
    "comma": completion("25,3"),
    "two numbers": completion("25.3 26.1"),
    "out of range": completion("250"),
    "below range": completion("-3"),
    "empty": completion(""),
    "null": completion(None),
    "content filter": completion("25.3", "content_filter"),
    "content filter, null": completion(None, "content_filter"),
    "cut off": completion("25.", "length"),
    "cut off but a number": completion("25", "length"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_answers_are_kept_counted_and_not_asked_again(tmp_path: Path, case: str) -> None:
    with FakeLLM(lambda body, number: Act(200, INVALID[case])) as server:
        client = make_client(server, tmp_path)
        for _ in range(2):
            [[answer]] = client.ask([prompt(0)])
            assert answer.status == "invalid"
            assert answer.reason
            assert math.isnan(answer.values[0])
            assert answer.text == (INVALID[case]["choices"][0]["message"]["content"] or "")
        assert len(server.calls) == 1
        assert (client.counts.answered, client.counts.invalid, client.counts.failed) == (1, 1, 0)
        stored = client.lookup(answer.key)
        assert stored is not None
        assert answer.text in stored.response or answer.text == ""


def test_a_prompt_that_the_server_cut_is_an_error(tmp_path: Path) -> None:
    with FakeLLM(lambda body, number: Act(200, completion(usage={"prompt_tokens": 5, "completion_tokens": 4}))) as server:
        client = make_client(server, tmp_path)
        with pytest.raises(LLMStopped, match=r"5 tokens in a prompt of 12 words and numbers.*num_ctx"):
            client.ask([prompt(0)])
        assert len(server.calls) == 1
        assert len(client.cache) == 0


def test_nothing_but_failures_stops_the_run(tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        return ok(body, number) if body["messages"][0]["content"].endswith("number 0") else TRANSIENT["500"]

    with FakeLLM(script) as server:
        client = make_client(server, tmp_path, retries=1, concurrency=4)
        with pytest.raises(LLMStopped, match="20 requests failed in a row, the last one: HTTP 500"):
            client.ask([prompt(i) for i in range(100)])
        assert len(server.calls) < 1 + 2 * (20 + 4)


def test_an_unreachable_server_is_named(tmp_path: Path) -> None:
    client = Client(
        Settings("fake", "http://127.0.0.1:1/v1", key_variable=None, token_cap=10**6, retries=1, backoff=0.001), cache=tmp_path / "c"
    )
    with pytest.raises(LLMStopped, match=r"^fake at http://127.0.0.1:1/v1: the first request failed: connection to 127.0.0.1:1 failed"):
        client.ask([prompt(0), prompt(1)])
    assert client.budget.prompt_tokens == 0
    assert client.counts.retries == 0  # Whoever named a wrong port is told at once.


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_server_that_never_answers_is_reported_at_the_first_deadline(tmp_path: Path, how: str) -> None:
    with FakeLLM(lambda body, number: Act(200, completion(), how=how)) as server:
        with pytest.raises(LLMStopped, match=r"the first request failed: no answer within the deadline of 0\.5 s"):
            make_client(server, tmp_path, deadline=0.5).ask([prompt(i) for i in range(9)])
        assert len(server.calls) == 1


def test_a_server_that_goes_away_is_waited_for_once_it_has_answered(tmp_path: Path) -> None:
    with FakeLLM() as server:
        client = make_client(server, tmp_path, retries=2)
        client.ask([prompt(0)])
    [[answer]] = client.ask([prompt(1)])
    assert answer.status == "failed"
    assert client.counts.retries == 2
