"""Runs whose answers are invalid: which stop, when, with what advice, and what running again does.

Replies here are invalid under any reading: two numbers, or none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_llm_server import Act, FakeLLM, completion, ok, prompt

from llmpp_core.llm.client import Client, LLMStopped, Price, Settings
from llmpp_core.llm.workers import ask_here

PRICE = Price(1.0, 1.0, "2026-01-01")
ADVICE = r"another form of request \(single, batched, json\), another level of the prompt or, where replies are cut off, more answer_tokens"


def make_client(server: FakeLLM, folder: Path, **changes: Any) -> Client:
    settings = {"base_url": server.url, "key_variable": None, "price": PRICE, "budget": 1e6, "concurrency": 1, "backoff": 0.001} | changes
    return Client(Settings("fake", **settings), cache=folder / "c")


def invalid_if(condition: Callable[[int], bool]) -> Callable[[dict[str, Any], int], Act]:
    """Answer with no number where the number of the prompt meets a condition."""

    def script(body: dict[str, Any], number: int) -> Act:
        text = body["messages"][0]["content"]
        unclear = condition(int(text.rsplit(" ", 1)[1]))
        return Act(body=completion("I cannot tell.", prompt=text)) if unclear else ok(body, number)

    return script


def test_an_invalid_first_answer_stops_a_run_that_costs_and_running_again_goes_on_to_twenty(tmp_path: Path) -> None:
    prompts = [prompt(i) for i in range(50)]
    with FakeLLM(invalid_if(lambda i: True)) as server:
        with pytest.raises(LLMStopped, match=rf"the first answer is invalid, .*'I cannot tell\.'.*{ADVICE}\. Run again.*1 of 50 requests"):
            make_client(server, tmp_path).ask(prompts)
        assert len(server.calls) == 1
        with pytest.raises(LLMStopped, match=rf"20 of 20 answers are invalid, the last one 'I cannot tell\.' .*{ADVICE}.*max_invalid=1"):
            make_client(server, tmp_path).ask(prompts)
        assert len(server.calls) == 20
        # Nothing more is paid for until something is changed.
        with pytest.raises(LLMStopped, match="20 of 20 answers are invalid"):
            make_client(server, tmp_path).ask(prompts)
        assert len(server.calls) == 20
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            answers = make_client(server, tmp_path, max_invalid=1.0).ask(prompts)
        assert [answer.status for (answer,) in answers] == ["invalid"] * 50
        assert len(server.calls) == 50


def test_an_invalid_first_answer_is_gone_on_from_if_the_next_are_valid(tmp_path: Path) -> None:
    prompts = [prompt(i) for i in range(50)]
    with FakeLLM(invalid_if(lambda i: i == 0)) as server:
        client = make_client(server, tmp_path)
        with pytest.raises(LLMStopped, match="the first answer is invalid"):
            client.ask(prompts)
        assert [answer.status for (answer,) in client.ask(prompts)] == ["invalid"] + ["answered"] * 49
        assert len(server.calls) == 50


@pytest.mark.parametrize("changes", [{"price": Price(0, 0, "2026-01-01"), "budget": None}, {"price": None, "budget": None}])
def test_the_first_answer_of_a_server_that_costs_nothing_stops_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    with FakeLLM(invalid_if(lambda i: i < 5)) as server:
        answers = make_client(server, tmp_path, **changes).ask([prompt(i) for i in range(30)])
        assert [answer.status for (answer,) in answers] == ["invalid"] * 5 + ["answered"] * 25


@pytest.mark.parametrize(("valid", "asked"), [(1, 20), (10, 21), (15, 31)])
def test_a_run_that_turns_mostly_invalid_stops(tmp_path: Path, valid: int, asked: int) -> None:
    # More than half of at least twenty: after so many valid ones as many more are invalid, and one.
    with FakeLLM(invalid_if(lambda i: i >= valid)) as server:
        client = make_client(server, tmp_path)
        with pytest.raises(
            LLMStopped, match=rf"{asked - valid} of {asked} answers are invalid.*\({asked} of 100 requests answered and kept\)"
        ):
            client.ask([prompt(i) for i in range(100)])
        assert len(server.calls) == asked == len(client.cache)


@pytest.mark.parametrize(("share", "stops"), [(0.5, False), (0.3, True), (0.0, True), (1.0, False)])
def test_the_share_that_stops_a_run_can_be_set(tmp_path: Path, share: float, stops: bool) -> None:
    with FakeLLM(invalid_if(lambda i: i % 5 in (2, 4))) as server:  # Two of five.
        client = make_client(server, tmp_path, max_invalid=share)
        if stops:
            with pytest.raises(LLMStopped, match="8 of 20 answers are invalid"):
                client.ask([prompt(i) for i in range(40)])
        else:
            assert len(client.ask([prompt(i) for i in range(40)])) == 40


def test_a_run_that_has_all_its_answers_returns_them_and_warns(tmp_path: Path) -> None:
    with FakeLLM(invalid_if(lambda i: i >= 5)) as server:
        client = make_client(server, tmp_path)
        with pytest.warns(UserWarning, match=r"fake: 15 of 20 answers are invalid, the last one 'I cannot tell\.'"):
            answers = client.ask([prompt(i) for i in range(20)])
        assert len(answers) == 20


def test_answers_to_other_prompts_do_not_count(tmp_path: Path) -> None:
    # The same client asks in another form after the first was stopped.
    with FakeLLM(invalid_if(lambda i: i < 100)) as server:
        client = make_client(server, tmp_path, price=None, budget=None)
        with pytest.raises(LLMStopped, match="20 of 20 answers are invalid"):
            client.ask([prompt(i) for i in range(30)])
        answers = client.ask([prompt(i) for i in range(100, 130)])
        assert {answer.status for (answer,) in answers} == {"answered"}


def test_workers_stop_as_well(tmp_path: Path) -> None:
    with FakeLLM(invalid_if(lambda i: True)) as server:
        client = make_client(server, tmp_path, price=None, budget=None)
        asked = ask_here(client.settings, [client.job(prompt(i)) for i in range(50)])
        assert asked.stopped.startswith("20 of 20 answers are invalid")
        assert len(asked.answers) == len(server.calls) == 20
