"""What responses are taken for; `test_llm_grammar` has the forms of the text itself.

A server that fails inside a status 200 does so in many words: gateways (an error in the choice), vLLM and SGLang (abort), Ollama (load,
unload, or nothing at all), DeepSeek (insufficient_system_resource), GLM (network_error).
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from llmpp_core.llm.answers import Answer, ReplyError, read_answer, read_reply
from llmpp_core.llm.prompts import Prompt


def read(text: str, form: str = "single", n: int = 1, low: float = 0.0, high: float = 100.0, sign: int = 1) -> Answer:
    raw = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})
    return read_answer(Prompt("p", "q", form, n, low, high, sign), "key", raw)


@pytest.mark.parametrize(("text", "value"), [("25.31", 25.31), (" 25\n", 25), ("+7.0", 7), ("100", 100), ("0", 0), ("-0", 0)])
def test_one_number_is_read(text: str, value: float) -> None:
    answer = read(text)
    assert answer.values == (value,)
    assert (answer.status, answer.reason) == ("answered", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "BLEU: 25",
        "25.3.",
        "25,3",
        "1e1",
        "25 26",
        "25%",
        "nan",
        "inf",
        "0x19",
        "२५",
        "250",
        "-1",
        "9" * 500,
        ".5",
        "5.",
        "__import__('os')",
    ],
)
def test_anything_else_is_not_as_asked(text: str) -> None:
    answer = read(text)
    assert math.isnan(answer.as_asked[0])
    assert "\n" not in answer.reason
    assert answer.text == text


def test_numbered_lines_are_read_by_their_numbers() -> None:
    assert read("2: 26.5\n\n1: 25\n3: 27.25\n", "batched", 3).values == (25, 26.5, 27.25)


@pytest.mark.parametrize(
    "text", ["25\n26", "1: 25", "1: 25\n1: 26", "1: 25\n3: 26", "1: 25\n2: 26\n3: 27", "1: 25\n2: 26\nDone.", "1. 25\n2. 26", "1: 25\n2:"]
)
def test_numbered_lines_that_do_not_match_the_question_are_invalid_together(text: str) -> None:
    assert all(math.isnan(value) for value in read(text, "batched", 2).as_asked)


def test_a_number_out_of_range_spoils_only_its_own_architecture() -> None:
    answer = read("1: 25\n2: 260", "batched", 2)
    assert answer.values[0] == 25
    assert math.isnan(answer.values[1])
    assert (answer.status, answer.reason) == ("invalid", "260 is outside 0 to 100")


def test_json_objects_are_read_by_their_keys() -> None:
    assert read('{"2": 26.5, "1": 25}', "json", 2).values == (25, 26.5)


@pytest.mark.parametrize(
    "text",
    [
        *("[25, 26]", '{"1": 25}', '{"1": "25", "2": 26}', '{"1": true, "2": 26}', '{"1": NaN, "2": 26}', '{"1": 25, "1": 25, "2": 26}'),
        *('{"1": 25, "2": 26} ok', '{"1": {"2": 3}, "2": 26}', '{"1": null, "2": 26}', "{}", "25", "null", "[" * 100_000),
        '{"1": ' + "9" * 5000 + ', "2": 26}',
    ],
)
def test_json_that_does_not_match_the_question_is_not_as_asked(text: str) -> None:
    assert any(math.isnan(value) for value in read(text, "json", 2).as_asked)


def test_scores_are_negated_where_lower_is_better() -> None:
    assert read("12.5", low=1.0, high=1000.0, sign=-1).values == (-12.5,)


def test_a_refusal_is_an_answer_that_is_invalid() -> None:
    raw = json.dumps({"choices": [{"message": {"content": None, "refusal": "I cannot"}, "finish_reason": "stop"}]})
    answer = read_answer(Prompt("p", "q", "single", 1, 0, 1), "key", raw)
    assert (answer.status, answer.text) == ("invalid", "I cannot")


FINISHES = ("error", "ERROR", "abort", "load", "unload", "cancelled", "network_error", "insufficient_system_resource")


def choice(content: Any, finish: str | None = "stop", tokens: int | None = 4, **more: Any) -> str:
    usage = {"prompt_tokens": 40, "completion_tokens": tokens} if tokens is not None else None
    message = {"content": content, **more.pop("message", {})}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish, **more}], "usage": usage})


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        *[(choice(text, finish), f"the server gave up: finish_reason '{finish}'") for finish in FINISHES for text in ("", "25.3")],
        (choice(None, tokens=0), "an empty reply of 0 tokens: the server gave up"),
        (choice("", tokens=0), "an empty reply of 0 tokens: the server gave up"),
        (choice("", "stop", error={"code": 502, "message": "Upstream \ud83d gone"}), "an error inside the reply: Upstream \ufffd gone"),
        (choice("25.3", None, error="gone"), "an error inside the reply: gone"),
    ],
)
def test_a_reply_that_says_that_the_server_failed_is_no_reply(raw: str, reason: str) -> None:
    with pytest.raises(ReplyError) as error:
        read_reply(raw)
    assert str(error.value) == reason
    # One that was kept before this was known is no answer of the model either.
    answer = read_answer(Prompt("p", "q", "single", 1, 0, 100), "key", raw)
    assert (answer.status, answer.reason) == ("failed", reason)
    assert math.isnan(answer.values[0])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (choice(None), "the reply is empty"),
        (choice("", tokens=None), "the reply is empty"),
        (choice(None, "content_filter", 0), "stopped by the content filter"),
        (choice("", "length"), "the reply is empty, all of it went on reasoning: raise answer_tokens, or lower"),
        (choice("", "length", 0), "the reply is empty, all of it went on reasoning: raise answer_tokens, or lower"),
        (choice(None, message={"reasoning_content": "25?"}), "the reply is empty, all of it went on reasoning: raise answer_tokens"),
        (choice(" ", message={"reasoning": "25?"}), "the reply is empty, all of it went on reasoning: raise answer_tokens"),
        (choice([{"type": "thinking", "thinking": "25?"}]), "the reply is empty, all of it went on reasoning: raise answer_tokens"),
        (choice("<think>25", "length"), "cut off at the token limit: raise answer_tokens"),
        (choice("<think>25"), "the reasoning has no end: raise answer_tokens"),
        (choice("<think>25</think>"), "nothing but reasoning: raise answer_tokens"),
    ],
)
def test_an_answer_without_text_says_what_to_change(raw: str, reason: str) -> None:
    answer = read_answer(Prompt("p", "q", "single", 1, 0, 100), "key", raw)
    assert answer.status == "invalid"
    assert answer.reason.startswith(reason)


def test_half_a_character_never_leaves_a_reply() -> None:
    answer = read_answer(Prompt("p", "q", "single", 1, 0, 100), "key", choice("25.30 \ud83d \ud83d\ude00"))
    assert answer.text == "25.30 \ufffd \U0001f600"
    assert (answer.text + answer.reason).encode()


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": None}, {"prompt_tokens": "5"}, {"prompt_tokens": -5}])
def test_unusable_token_counts_are_missing_ones(usage: Any) -> None:
    reply = read_reply(json.dumps({"choices": [{"message": {"content": "1"}}], "usage": usage}))
    assert (reply.prompt_tokens, reply.answer_tokens) == (None, None)


@pytest.mark.parametrize(
    "raw", ["", "[]", "null", "{", "[" * 100_000, "{}", '{"choices": {}}', '{"choices": [[]]}', '{"error": "busy"}', '"x"']
)
def test_a_body_without_a_reply_is_an_error(raw: str) -> None:
    with pytest.raises(ReplyError):
        read_reply(raw)
