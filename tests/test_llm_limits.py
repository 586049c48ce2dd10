"""What bounds a run: pace, money and tokens as vendors count them, and the share of invalid answers."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from fake_llm_server import Act, FakeLLM, act_on, completion, make_client, prompt

from llmpp_core.llm.client import LLMStopped, Price
from llmpp_core.llm.limits import Pace
from llmpp_core.llm.settings import FREE, Settings, fewest_tokens

PRICE = Price(1e6, 1e6, "2026-01-01")
ONE_BY_ONE: dict[str, Any] = {"concurrency": 1, "token_cap": None, "price": PRICE, "budget": 1e9}
UNCLEAR = Act(body=completion("I cannot tell.", usage={"prompt_tokens": 40, "completion_tokens": 4}))
ADVICE = r"another form of request \(single, batched, json\), another level of the prompt or, where replies are cut off, more answer_tokens"


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute"])
def test_rate_limits_are_kept(tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = make_client("http://127.0.0.1:1/v1", tmp_path).estimate([prompt(0)])
    tokens = estimate.prompt_tokens + estimate.answer_tokens
    changes: dict[str, Any] = {limit: {"requests_per_minute": 600.0, "tokens_per_minute": 600.0 * tokens}[limit]}
    pace = Pace(Settings("m", **changes))
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: 7.0)
        assert [pace.reserve(tokens) for _ in range(6)] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    with FakeLLM() as server:
        started = time.monotonic()
        make_client(server.url, tmp_path, **changes).ask([prompt(i) for i in range(6)])
        assert len(server.times) == 6
        assert server.times[-1] - started >= 0.5


@pytest.mark.parametrize("limit", [{"price": PRICE, "budget": 400.0}, {"token_cap": 400}])
def test_the_budget_is_never_exceeded_even_in_the_worst_case(tmp_path: Path, limit: dict[str, Any]) -> None:
    # As many tokens as were allowed for.
    allowed = Act(body=completion("25", usage={"prompt_tokens": 13, "completion_tokens": 25}))
    with FakeLLM(lambda body, number: allowed, latency=0.02) as server:
        client = make_client(server.url, tmp_path, **limit)
        said = r"could exceed the (budget of 400 USD|token cap of 400) \(10 of 50 requests answered and kept"
        with pytest.raises(LLMStopped, match=said):
            client.ask([prompt(i) for i in range(50)])
        assert client.budget.prompt_tokens + client.budget.answer_tokens == 38 * len(server.calls) <= 400
        assert len(client.cache) == len(server.calls) == 10  # As many as fit; what was in flight was waited for.


def usage(prompt_tokens: Any = None, completion_tokens: Any = None, total: Any = None, cached: Any = None) -> dict[str, Any]:
    found = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return {name: value for name, value in found.items() if value is not None} | details


# The prompt has 12 words and numbers, 25 tokens of the answer are allowed; None stands for what is set aside.
COUNTS = {
    "plain": (usage(40, 4, 44), (40, 4)),
    "no total": (usage(40, 4), (40, 4)),
    "reasoning in the completion": (usage(40, 319, 359), (40, 319)),
    "reasoning in the total alone": (usage(40, 2, 359), (40, 319)),
    "no completion": (usage(40, None, 359), (40, 319)),
    "no prompt": (usage(None, 4, 44), (40, 4)),
    "a total that is too low": (usage(40, 4, 40), (40, 4)),
    "cached, counted in": (usage(40, 4, 44, cached=30), (40, 4)),
    "cached, not counted in": (usage(6, 4, 10, cached=34), (40, 4)),
    "cached, counted in the total alone": (usage(6, 4, 44, cached=34), (40, 4)),
    "a zero": (usage(0, 0, 0), (None, None)),
    "no tokens of the answer": (usage(40, 0, 40), (40, None)),
    "no prompt at all": (usage(None, 4), (None, 4)),
    "no counts": (usage("40", True, -3), (None, None)),
    "null": (None, (None, None)),
}


@pytest.mark.parametrize("case", COUNTS)
def test_tokens_are_charged_as_billed_and_never_less(tmp_path: Path, case: str) -> None:
    counted, (sent, received) = COUNTS[case]
    with FakeLLM(lambda body, number: Act(body={**completion("25.3"), "usage": counted})) as server, warnings.catch_warnings():
        warnings.simplefilter("error")  # Cached tokens that are named are no reason to warn.
        client = make_client(server.url, tmp_path, **ONE_BY_ONE)
        aside = client.estimate([prompt(0)])
        [[answer]] = client.ask([prompt(0)])
    assert answer.status == "answered"
    assert client.budget.prompt_tokens == (aside.prompt_tokens if sent is None else sent)
    assert client.budget.answer_tokens == (25 if received is None else received)
    assert client.counts.estimated == (sent is None or received is None)
    assert ("1 calls charged by estimate" in client.summary()) == bool(client.counts.estimated)


def test_reasoning_that_no_limit_bounds_stays_within_the_budget(tmp_path: Path) -> None:
    with FakeLLM(lambda body, number: Act(body=completion("25.3", usage=usage(40, 2, 359)))) as server:
        client = make_client(server.url, tmp_path, price=PRICE, budget=3000.0)
        with pytest.raises(LLMStopped, match="could exceed the budget"):
            client.ask([prompt(i) for i in range(50)])
        # Every call after the first is admitted only if as much as the first one took would fit.
        assert client.budget.spent == 359 * len(server.calls) == 359 * 8


@pytest.mark.parametrize("price", [PRICE, FREE])
def test_a_server_that_counts_only_what_was_not_cached_is_warned_of_once(tmp_path: Path, price: Price) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        return Act(body=completion("25.3", usage=usage(40 if "number 0" in body["messages"][0]["content"] else 6, 4)))

    with FakeLLM(script) as server:
        make_client(server.url, tmp_path, **ONE_BY_ONE).ask([prompt(0)])
        client = make_client(server.url, tmp_path, **ONE_BY_ONE | {"price": price})  # Goes on: no first prompt, no cut.
        said = "6 tokens in a prompt of 12 words and numbers: it leaves out what it had cached, or it cuts"
        with pytest.warns(UserWarning, match=said) as seen:
            client.ask([prompt(i) for i in range(5)])
        assert len(seen) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert {answer.status for (answer,) in client.ask([prompt(i) for i in range(9)])} == {"answered"}
    # A count that cannot be right is not what is charged.
    estimate = client.estimate([prompt(99)]).prompt_tokens
    assert estimate >= fewest_tokens(prompt(99)) > 6
    assert client.budget.prompt_tokens >= 8 * (6 if price == FREE else estimate)
    assert client.counts.estimated == (0 if price == FREE else 8)


def test_a_first_prompt_that_was_cut_is_an_error_that_is_charged(tmp_path: Path) -> None:
    with FakeLLM(lambda body, number: Act(body=completion(usage=usage(5, 4)))) as server:
        client = make_client(server.url, tmp_path, **ONE_BY_ONE)
        with pytest.raises(LLMStopped, match=r"5 tokens in a prompt of 12 words and numbers, so it cut the prompt.*num_ctx.*start it anew"):
            client.ask([prompt(0), prompt(1)])
        assert (len(server.calls), len(client.cache)) == (1, 0)
    assert client.budget.prompt_tokens > 5


def test_an_invalid_first_answer_stops_a_run_that_costs_and_running_again_goes_on_to_twenty(tmp_path: Path) -> None:
    prompts = [prompt(i) for i in range(50)]
    twenty = rf"20 of 20 answers are invalid, the last one 'I cannot tell\.' .*{ADVICE}.*max_invalid=1"
    with FakeLLM(lambda body, number: UNCLEAR) as server:
        with pytest.raises(LLMStopped, match=rf"the first answer is invalid, .*'I cannot tell\.'.*{ADVICE}\. Run again.*1 of 50 requests"):
            make_client(server.url, tmp_path, **ONE_BY_ONE).ask(prompts)
        assert len(server.calls) == 1
        for _ in range(2):  # Nothing more is paid for until something is changed.
            with pytest.raises(LLMStopped, match=twenty):
                make_client(server.url, tmp_path, **ONE_BY_ONE).ask(prompts)
            assert len(server.calls) == 20
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            answers = make_client(server.url, tmp_path, **ONE_BY_ONE, max_invalid=1.0).ask(prompts)
        assert [answer.status for (answer,) in answers] == ["invalid"] * 50


def test_of_a_server_that_costs_nothing_no_first_answer_stops_a_run_nor_do_answers_to_other_prompts(tmp_path: Path) -> None:
    with FakeLLM(act_on(range(30), UNCLEAR)) as server:
        client = make_client(server.url, tmp_path, **ONE_BY_ONE | {"price": None, "budget": None})
        with pytest.raises(LLMStopped, match="20 of 20 answers are invalid"):
            client.ask([prompt(i) for i in range(30)])
        # The same client asks in another form after the first was stopped.
        assert {answer.status for (answer,) in client.ask([prompt(i) for i in range(30, 60)])} == {"answered"}


@pytest.mark.parametrize(
    ("share", "unclear", "asked"),
    [
        # More than half of at least twenty: after so many valid ones as many more are invalid, and one.
        *((0.5, range(valid, 100), asked) for valid, asked in ((1, 20), (10, 21), (15, 31))),
        *((share, [i for i in range(40) if i % 5 in (2, 4)], asked) for share, asked in ((0.5, 0), (0.3, 20), (0.0, 20), (1.0, 0))),
    ],
)
def test_a_run_stops_when_the_share_of_invalid_answers_is_passed(tmp_path: Path, share: float, unclear: Any, asked: int) -> None:
    with FakeLLM(act_on(unclear, UNCLEAR)) as server:
        client = make_client(server.url, tmp_path, **ONE_BY_ONE, max_invalid=share)
        if asked:
            bad = sum(i in unclear for i in range(asked))
            with pytest.raises(LLMStopped, match=rf"{bad} of {asked} answers are invalid.*\({asked} of 40 requests answered and kept\)"):
                client.ask([prompt(i) for i in range(40)])
            assert len(server.calls) == asked == len(client.cache)
        else:
            assert len(client.ask([prompt(i) for i in range(40)])) == 40


def test_a_run_that_has_all_its_answers_returns_them_and_warns(tmp_path: Path) -> None:
    with FakeLLM(act_on(range(5, 20), UNCLEAR)) as server:
        client = make_client(server.url, tmp_path, **ONE_BY_ONE)
        with pytest.warns(UserWarning, match=r"fake: 15 of 20 answers are invalid, the last one 'I cannot tell\.'"):
            answers = client.ask([prompt(i) for i in range(20)])
        assert (len(answers), client.counts.answered, client.counts.invalid, client.counts.failed) == (20, 20, 15, 0)
