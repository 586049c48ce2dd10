"""What is charged for a call, whichever way its server counts.

Looked at: reasoning in the total alone (xAI, Gemini), in the completion (OpenAI), nowhere; prompts counted whole (OpenAI), without what was
cached and named as such, without it and without a word (Ollama); counts that are absent, zero, or no counts at all.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from fake_llm_server import Act, FakeLLM, completion, prompt

from llmpp_core.llm.client import Client, LLMStopped, Price, Settings
from llmpp_core.llm.settings import FREE, fewest_tokens

PRICE = Price(1e6, 1e6, "2026-01-01")


def make_client(server: FakeLLM, folder: Path, **changes: Any) -> Client:
    settings = {"base_url": server.url, "key_variable": None, "price": PRICE, "budget": 1e9, "concurrency": 1, "backoff": 0.001} | changes
    return Client(Settings("fake", **settings), cache=folder / "c")


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
    with FakeLLM(lambda body, number: Act(body={**completion("25.3"), "usage": counted})) as server:
        client = make_client(server, tmp_path)
        aside = client.estimate([prompt(0)])
        [[answer]] = client.ask([prompt(0)])
    assert answer.status == "answered"
    assert client.budget.prompt_tokens == (aside.prompt_tokens if sent is None else sent)
    assert client.budget.answer_tokens == (25 if received is None else received)
    assert client.counts.estimated == (sent is None or received is None)


def test_reasoning_that_no_limit_bounds_stays_within_the_budget(tmp_path: Path) -> None:
    with FakeLLM(lambda body, number: Act(body=completion("25.3", usage=usage(40, 2, 359)))) as server:
        client = make_client(server, tmp_path, budget=3000.0, concurrency=16)
        with pytest.raises(LLMStopped, match="could exceed the budget"):
            client.ask([prompt(i) for i in range(50)])
        # Every call after the first is admitted only if as much as the first one took would fit.
        assert client.budget.spent == 359 * len(server.calls) <= 3000
        assert len(server.calls) == 8


def rest_only(body: dict[str, Any], number: int) -> Act:
    """Count all of the first prompt and of others only what is new, without a word about the rest."""
    new = 40 if "number 0" in body["messages"][0]["content"] else 6
    return Act(body=completion("25.3", usage=usage(new, 4)))


@pytest.mark.parametrize("price", [PRICE, FREE])
def test_a_server_that_counts_only_what_was_not_cached_is_warned_of_once(tmp_path: Path, price: Price) -> None:
    with FakeLLM(rest_only) as server:
        client = make_client(server, tmp_path, price=price)
        with pytest.warns(
            UserWarning, match="6 tokens in a prompt of 12 words and numbers: it leaves out what it had cached, or it cuts"
        ) as seen:
            answers = client.ask([prompt(i) for i in range(5)])
        assert len(seen) == 1
        assert [answer.status for (answer,) in answers] == ["answered"] * 5
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client.ask([prompt(i) for i in range(9)])
    # A count that cannot be right is not what is charged.
    estimate = client.estimate([prompt(99)]).prompt_tokens
    assert estimate >= fewest_tokens(prompt(99)) > 6
    assert client.budget.prompt_tokens >= 40 + 8 * (6 if price == FREE else estimate)
    assert client.counts.estimated == (0 if price == FREE else 8)


def test_a_run_that_goes_on_elsewhere_does_not_take_the_cache_of_the_server_for_a_cut(tmp_path: Path) -> None:
    with FakeLLM(rest_only) as server:
        make_client(server, tmp_path).ask([prompt(0)])
        with pytest.warns(UserWarning, match="6 tokens in a prompt"):
            answers = make_client(server, tmp_path).ask([prompt(0), prompt(1)])
        assert [answer.status for (answer,) in answers] == ["answered"] * 2


def test_cached_tokens_that_are_named_are_no_reason_to_warn(tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        return Act(body=completion("25.3", usage=usage(6, 4, cached=34)))

    with FakeLLM(script) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        client = make_client(server, tmp_path)
        client.ask([prompt(i) for i in range(3)])
    assert client.budget.prompt_tokens == 3 * 40


def test_a_first_prompt_that_was_cut_is_an_error_that_is_charged(tmp_path: Path) -> None:
    with FakeLLM(lambda body, number: Act(body=completion(usage=usage(5, 4)))) as server:
        client = make_client(server, tmp_path)
        with pytest.raises(LLMStopped, match=r"5 tokens in a prompt of 12 words and numbers, so it cut the prompt.*num_ctx.*start it anew"):
            client.ask([prompt(0), prompt(1)])
        assert len(server.calls) == 1
        assert len(client.cache) == 0
        assert client.budget.prompt_tokens > 5


def test_the_summary_of_a_free_server_needs_no_counts(tmp_path: Path) -> None:
    with FakeLLM(lambda body, number: Act(body=completion(usage=usage(0, 0, 0)))) as server:
        client = make_client(server, tmp_path, price=FREE, budget=None)
        client.ask([prompt(0)])
    assert client.counts.estimated == 0
