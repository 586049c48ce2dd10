"""Every row of the client's fault table, against a server that misbehaves."""

from __future__ import annotations

import datetime
import email.utils
import math
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from fake_llm_server import Act, FakeLLM, act_on, completion, make_client, ok, prompt

from llmpp_core.llm.client import LLMStopped
from llmpp_core.llm.faults import retry_after


def error(message: str = "no", code: str = "", kind: str = "") -> dict[str, Any]:
    return {"error": {"message": message, "code": code, "type": kind}}


def test_retry_after_is_read_in_all_its_forms() -> None:
    date = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100), usegmt=True)
    assert 97 < retry_after({"retry-after": date}) <= 100
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after-ms": "soon", "retry-after": "9.5"}) == 9.5
    assert retry_after({"retry-after": "soon"}) is retry_after({}) is None


@pytest.mark.parametrize(("code", "headers", "shared"), [
    ("rate_limit_exceeded", {}, True),
    ("", {"x-ratelimit-remaining-tokens": "0"}, True),
    ("overloaded", {}, False),
])  # fmt: skip
def test_a_429_waits_as_told_and_only_one_of_the_account_holds_back_all(
    tmp_path: Path, code: str, headers: dict[str, str], shared: bool
) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        return act_on([5] if number == 0 else [], Act(429, error(code=code), {"Retry-After": "1.0", **headers}))(body, number)

    with FakeLLM(script, latency=0.02) as server:
        answers = make_client(server.url, tmp_path, concurrency=2).ask([prompt(i) for i in range(40)])
    assert {answer.status for (answer,) in answers} == {"answered"}
    limited, again = (time for text, time in zip(server.prompts(), server.times, strict=True) if text.endswith("number 5"))
    assert again - limited >= 1.0
    meanwhile = sum(limited < time < limited + 1.0 for time in server.times)
    assert meanwhile <= 2 if shared else meanwhile > 5


HOPELESS = {
    "a long wait": Act(429, error("slow down"), {"Retry-After": "3600"}),
    "quota": Act(429, error("pay first", "insufficient_quota")),
    "quota in a 200": Act(200, error("pay first", "insufficient_quota")),
    **{str(status): Act(status, error("not like this")) for status in (400, 401, 402, 403, 404, 405, 413, 422, 451, 501, 511)},
    # As DeepSeek, Moonshot and others say that the account is empty; a gateway's status inside a 200; a list, as Gemini sends it.
    "quota, Moonshot": Act(429, error("pay first", "exceeded_current_quota_error")),
    "balance": Act(503, error("pay first", kind="insufficient_balance")),
    "402 in a 200": Act(200, {"error": {"message": "402: no credits", "code": 402}}),
    "a list": Act(429, [error("pay first; 429", "insufficient_quota")]),
    "elsewhere": Act(301, b"", {"Location": "http://127.0.0.1:1/v1/chat/completions"}),
}


@pytest.mark.parametrize("fault", HOPELESS)
def test_hopeless_errors_stop_after_one_call_with_the_reason(tmp_path: Path, fault: str) -> None:
    act = HOPELESS[fault]
    with FakeLLM(lambda body, number: act) as server:
        client = make_client(server.url, tmp_path)
        with pytest.raises(LLMStopped) as stopped:
            client.ask([prompt(i) for i in range(30)])
        assert (len(server.calls), len(client.cache)) == (1, 0)
    said = act.body["error"]["message"] if isinstance(act.body, dict) else str(act.status)
    for part in (server.url, "0 of 30 requests answered", str(act.status), said):
        assert part in str(stopped.value)
    assert "\n" not in str(stopped.value)


TRANSIENT = {
    "500": Act(500, error()),
    "502": Act(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}),
    "html": Act(200, b"<html>Welcome to the hotel network</html>", {"Content-Type": "text/html"}),
    "reset": Act(how="reset"),
    "truncated": Act(200, completion(), how="truncate"),
    "invalid json": Act(200, b'{"choices": ['),
    "no object": Act(200, b"[]"),
    "error inside 200": Act(200, error("try later")),
    "null choices": Act(200, {"choices": None}),
    "null message": Act(200, {"choices": [{"message": None}]}),
    "generation failed": Act(424, error("Request failed during generation")),
    "client left": Act(499, error("gave up")),
    "429 of a gateway inside 200": Act(200, {"error": {"message": "rate limited", "code": 429}}),
    # The choice says that the server failed.
    **{f"finish_reason {reason}": Act(200, completion("", reason)) for reason in ("error", "abort", "load")},
    "nothing in no tokens": Act(200, completion(None, usage={"prompt_tokens": 20, "completion_tokens": 0})),
}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_passing_faults_are_retried_so_often_and_never_cached(tmp_path: Path, fault: str) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        return act_on([0, 1] if number == 0 else [1], TRANSIENT[fault])(body, number)

    with FakeLLM(script) as server:
        client = make_client(server.url, tmp_path)
        good, bad = client.ask([prompt(0), prompt(1)])
        assert (good[0].status, bad[0].status) == ("answered", "failed")
        assert bad[0].reason
        assert math.isnan(bad[0].values[0])
        assert (len(server.calls), client.counts.retries, client.counts.failed, len(client.cache)) == (2 + 4, 1 + 3, 1, 1)
        client.ask([prompt(0), prompt(1)])
        assert len(server.calls) == 2 + 4 + 4  # Only the failed one is asked again.


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_call_ends_at_its_deadline_and_is_charged(tmp_path: Path, how: str) -> None:
    late = Act(200, completion(), how=how)
    with FakeLLM(lambda body, number: act_on([1] if number == 0 else [], late)(body, number)) as server:
        client = make_client(server.url, tmp_path, deadline=3.0)
        client.ask([prompt(0)])
        before, started = client.budget.prompt_tokens, time.monotonic()
        [[answer]] = client.ask([prompt(1)])
        assert answer.status == "answered"
        assert time.monotonic() - started >= 3.0
    assert client.counts.estimated == 1
    # Both calls were charged: the answered one by the server's count, the other by estimate.
    assert client.budget.prompt_tokens - before > answer.prompt_tokens
    assert client.budget.answer_tokens == 4 + 4 + 25


def test_an_allowance_spent_on_reasoning_is_named_not_cached_and_stops_the_run(tmp_path: Path) -> None:
    spent = Act(200, completion("", "length", {"prompt_tokens": 40, "completion_tokens": 4}))
    with FakeLLM(act_on(range(1, 99), spent)) as server:
        client = make_client(server.url, tmp_path, max_failures=3, concurrency=1)
        with pytest.raises(LLMStopped, match=r"3 requests failed in a row.*all 25 tokens allowed went on reasoning.*answer_tokens"):
            client.ask([prompt(i) for i in range(10)])
        assert (len(server.calls), len(client.cache), client.budget.answer_tokens) == (4, 1, 16)


def test_failures_in_a_row_stop_the_run_and_others_do_not(tmp_path: Path) -> None:
    with FakeLLM(act_on([i for i in range(30) if i % 3 or i > 12], TRANSIENT["500"])) as server:
        client = make_client(server.url, tmp_path, retries=1, concurrency=1, max_failures=5)
        with pytest.raises(LLMStopped, match="5 requests failed in a row, the last one: HTTP 500"):
            client.ask([prompt(i) for i in range(30)])
        assert (client.counts.answered, client.counts.failed) == (5, 13)


def test_an_absent_server_is_named_at_once_and_waited_for_once_it_has_answered(tmp_path: Path) -> None:
    client = make_client("http://127.0.0.1:1/v1", tmp_path)
    with pytest.raises(LLMStopped, match=r"^fake at http://127.0.0.1:1/v1: the first request failed: connection to 127.0.0.1:1 failed"):
        client.ask([prompt(0), prompt(1)])
    assert (client.budget.prompt_tokens, client.counts.retries) == (0, 0)
    with FakeLLM(lambda body, number: Act(how="hang")) as server:
        with pytest.raises(LLMStopped, match=r"the first request failed: no answer within the deadline of 0\.5 s"):
            make_client(server.url, tmp_path, deadline=0.5).ask([prompt(i) for i in range(9)])
        assert len(server.calls) == 1
    with FakeLLM() as server:
        client = make_client(server.url, tmp_path, retries=2)
        client.ask([prompt(0)])
    [[answer]] = client.ask([prompt(1)])
    assert (answer.status, client.counts.retries) == ("failed", 2)


FILTERS = {
    "Azure": Act(400, {"error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "type": None, "param": "prompt", "code": "content_filter", "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
    }}),
    "Azure, inner code alone": Act(400, {"error": {"message": "no", "code": None, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    "OpenAI": Act(400, {"error": {"message": "rejected", "type": "invalid_request_error", "code": "content_policy_violation"}}),
    "OpenAI, reasoning": Act(400, {"error": {"message": "Invalid prompt", "code": "invalid_prompt"}}),
    "OpenRouter": Act(403, {"error": {"message": "This model requires moderation and your input was flagged", "code": 403}}),
    "DeepSeek": Act(400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error", "code": "invalid_request_error"}}),
    "Alibaba": Act(400, {"error": {"message": "Input data may contain inappropriate content.", "code": "data_inspection_failed"}}),
    "Moonshot": Act(400, {"error": {"message": "high risk", "type": "content_filter"}}),
    "inside 200": Act(200, {"error": {"message": "no", "code": "content_filter"}}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("vendor", "refused"), [*((vendor, range(1)) for vendor in FILTERS), ("Azure", range(3, 4)), ("OpenRouter", range(8))]
)
def test_prompts_that_meet_a_content_filter_fail_alone(tmp_path: Path, vendor: str, refused: range) -> None:
    prompts = [prompt(i) for i in range(12)]
    with FakeLLM(act_on(refused, FILTERS[vendor]), latency=0.01) as server:
        client = make_client(server.url, tmp_path, max_failures=5, concurrency=2)
        for _ in range(2):  # Again, the one that was refused comes first.
            answers = [answer for (answer,) in client.ask(prompts)]
            assert [answer.status for answer in answers] == ["failed" if i in refused else "answered" for i in range(12)]
            assert answers[refused[0]].reason.endswith(FILTERS[vendor].body["error"]["message"])
        assert len(server.calls) == 12 + len(refused)  # Each once: the filter would refuse it again.
        assert len(client.cache) == 12 - len(refused)
        if refused == range(8):  # Nothing is sent beside the first that is not refused.
            assert min(later - earlier for earlier, later in zip(server.times[:9], server.times[1:9], strict=False)) >= 0.01
    # What was refused may have been charged.
    assert client.counts.estimated == 2 * len(refused)


LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")


@pytest.mark.parametrize(("taken", "other"), [LIMIT_FIELDS, LIMIT_FIELDS[::-1]])
@pytest.mark.parametrize("message", ["Unsupported parameter: '{}' is not supported.", "Unrecognized request argument supplied: {}", ""])
def test_the_name_of_the_limit_is_changed_once_and_said(tmp_path: Path, taken: str, other: str, message: str) -> None:
    refusal = Act(400, {"error": {"message": message.format(other), "param": other, "code": "unsupported_parameter"}})
    if not message:  # As a server that checks requests by a schema says it.
        refusal = Act(422, {"detail": [{"type": "extra_forbidden", "loc": ["body", other], "msg": "Extra inputs are not permitted"}]})
    with FakeLLM(lambda body, number: refusal if other in body else ok(body, number)) as server:
        client = make_client(server.url, tmp_path, token_limit_field=other, concurrency=1)
        with pytest.warns(UserWarning, match=f"does not know {other}: {taken} was sent instead; set token_limit_field to it") as seen:
            client.ask([prompt(i) for i in range(5)])
        assert len(seen) == 1
        body = client.settings.body(prompt(4))
        assert server.calls[-1][0] == {**{name: value for name, value in body.items() if name != other}, taken: 25}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert {answer.status for (answer,) in client.ask([prompt(i) for i in range(9)])} == {"answered"}
        assert len(server.calls) == 1 + 9


@pytest.mark.parametrize(
    ("field", "setting"), [("max_tokens", "token_limit_field"), ("temperature", "temperature"), ("response_format", "form")]
)
def test_a_field_that_a_model_does_not_take_is_named_as_the_setting_to_change(tmp_path: Path, field: str, setting: str) -> None:
    known = LIMIT_FIELDS if field in LIMIT_FIELDS else [field]  # A server that takes neither name is not asked for ever.
    refusal = Act(400, error(f"Unsupported value: {', '.join(known)}", "unsupported_value"))
    with FakeLLM(lambda body, number: refusal) as server:
        with pytest.raises(LLMStopped, match=f"{field}.*; the setting to change is {setting}"):
            make_client(server.url, tmp_path).ask([prompt(0), prompt(1)])
        assert len(server.calls) == len(known)
