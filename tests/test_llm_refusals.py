"""Requests that a server refuses in a way that says nothing about others: by a content filter, or for the name of a field.

Looked at: content filters as Azure, OpenAI, OpenRouter, DeepSeek, Alibaba and Moonshot write them, in the first request, in many in a
row, and inside a 200; fields that a model does not take, in both directions and of every setting that makes a field.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from fake_llm_server import Act, FakeLLM, ok, prompt

from llmpp_core.llm.client import Client, LLMStopped, Settings

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


def make_client(server: FakeLLM, folder: Path, **changes: Any) -> Client:
    settings = {"base_url": server.url, "key_variable": None, "token_cap": 10**9, "concurrency": 1, "backoff": 0.001} | changes
    return Client(Settings("fake", **settings), cache=folder / "c")


def refuse(numbers: range, act: Act) -> Any:
    def script(body: dict[str, Any], number: int) -> Act:
        return act if int(body["messages"][0]["content"].rsplit(" ", 1)[1]) in numbers else ok(body, number)

    return script


@pytest.mark.parametrize("vendor", FILTERS)
@pytest.mark.parametrize("refused", [range(1), range(3, 4), range(8)], ids=["first", "later", "many in a row"])
def test_prompts_that_meet_a_content_filter_fail_alone(tmp_path: Path, vendor: str, refused: range) -> None:
    prompts = [prompt(i) for i in range(12)]
    with FakeLLM(refuse(refused, FILTERS[vendor])) as server:
        client = make_client(server, tmp_path, max_failures=5)
        for _ in range(2):  # Again, the one that was refused comes first.
            answers = [answer for (answer,) in client.ask(prompts)]
            assert [answer.status for answer in answers] == ["failed" if i in refused else "answered" for i in range(12)]
            assert answers[refused[0]].reason.endswith(FILTERS[vendor].body["error"]["message"])
        assert len(server.calls) == 12 + len(refused)  # Each once: the filter would refuse it again.
        assert len(client.cache) == 12 - len(refused)
        # What was refused may have been charged.
        assert client.counts.estimated == 2 * len(refused)


def test_nothing_is_sent_beside_the_first_that_is_not_refused(tmp_path: Path) -> None:
    with FakeLLM(refuse(range(3), FILTERS["Azure"]), latency=0.05) as server:
        make_client(server, tmp_path, concurrency=8).ask([prompt(i) for i in range(12)])
        gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
        assert min(gaps[:4]) >= 0.05
        assert server.most_in_flight > 1


def only(field: str, message: str, status: int = 400) -> Any:
    """Take one name of the field that limits an answer, and complain about the other."""
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}[field]
    body = {"error": {"message": message.format(other=other, field=field), "param": other, "code": "unsupported_parameter"}}
    body = (
        body
        if status == 400
        else {"detail": [{"type": "extra_forbidden", "loc": ["body", other], "msg": "Extra inputs are not permitted"}]}
    )
    return lambda sent, number: Act(status, body) if other in sent else ok(sent, number)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(("message", "status"), [
    ("Unsupported parameter: '{other}' is not supported with this model. Use '{field}' instead.", 400),
    ("Unrecognized request argument supplied: {other}", 400),
    ("", 422),
])  # fmt: skip
def test_the_name_of_the_limit_is_changed_once_and_said(tmp_path: Path, field: str, message: str, status: int) -> None:
    other = "max_completion_tokens" if field == "max_tokens" else "max_tokens"
    with FakeLLM(only(field, message, status)) as server:
        client = make_client(server, tmp_path, token_limit_field=other)
        with pytest.warns(UserWarning, match=f"does not know {other}: {field} was sent instead; set token_limit_field to it") as seen:
            answers = client.ask([prompt(i) for i in range(5)])
        assert len(seen) == 1
        assert [answer.status for (answer,) in answers] == ["answered"] * 5
        assert len(server.calls) == 1 + 5
        assert server.calls[-1][0] == {**{k: v for k, v in client.settings.body(prompt(4)).items() if k != other}, field: 25}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client.ask([prompt(i) for i in range(9)])
        assert len(server.calls) == 1 + 9


def test_a_server_that_takes_neither_name_is_not_asked_for_ever(tmp_path: Path) -> None:
    refusal = Act(400, {"error": {"message": "unknown fields max_tokens, max_completion_tokens", "code": "unsupported_parameter"}})
    with FakeLLM(lambda body, number: refusal) as server:
        with pytest.raises(
            LLMStopped, match="unknown fields max_tokens, max_completion_tokens; the setting to change is token_limit_field"
        ):
            make_client(server, tmp_path).ask([prompt(i) for i in range(5)])
        assert len(server.calls) == 2


@pytest.mark.parametrize("field", ["temperature", "reasoning_effort", "response_format"])
@pytest.mark.parametrize(
    "message", ["Unsupported value: '{}' does not support this with this model.", "Unrecognized request argument supplied: {}"]
)
def test_a_field_that_a_model_does_not_take_is_named_as_the_setting_to_change(tmp_path: Path, field: str, message: str) -> None:
    refusal = Act(400, {"error": {"message": message.format(field), "param": field, "code": "unsupported_value"}})
    setting = "form" if field == "response_format" else field
    with FakeLLM(lambda body, number: refusal) as server:
        with pytest.raises(LLMStopped, match=f"{field}.*; the setting to change is {setting}"):
            make_client(server, tmp_path).ask([prompt(0), prompt(1)])
        assert len(server.calls) == 1
