"""What keys depend on, and which settings are refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_llm_server import FakeLLM, prompt

from llmpp_book.studies.questions import WMT_TASKS
from llmpp_core.llm.client import Client
from llmpp_core.llm.prompts import Prompt, build_prompt
from llmpp_core.llm.settings import FREE, LOCAL_SERVERS, Price, Settings, estimate_tokens, fewest_tokens
from llmpp_core.space.search_space import HAT_WMT

BASE = Settings("m", temperature=0.0)
KEY = "ba172a61c242e27fe1aceea15e000f24b51519f26c789435f08cb88d537eacd6"
NAN, INF = float("nan"), float("inf")


def test_the_key_covers_all_that_answers_depend_on_and_nothing_else() -> None:
    pieces = Prompt("one ", "two", "json", 2, 0.0, 100.0)
    assert BASE.key(prompt(0)) == KEY  # On every machine.
    assert KEY not in {BASE.key(prompt(1)), BASE.key(prompt(0), 1)}
    assert BASE.key(pieces) != BASE.key(dataclasses.replace(pieces, form="batched"))
    assert BASE.key(pieces) == BASE.key(dataclasses.replace(pieces, prefix="one", query=" two"))
    changes: list[dict[str, Any]] = [
        *({"model": "n"}, {"base_url": "http://127.0.0.1:1/v1"}, {"endpoint": "elsewhere"}, {"temperature": 1.0}, {"temperature": None}),
        *({"answer_tokens": 50}, {"token_limit_field": "max_completion_tokens"}, {"reasoning_effort": "low"}, {"extra": {"top_p": 0.9}}),
    ]
    assert len({dataclasses.replace(BASE, **change).key(prompt(0)) for change in changes} - {KEY}) == len(changes)
    limits = {"concurrency": 1, "deadline": 1.0, "retries": 0, "budget": 1.0, "token_cap": 5, "price": FREE, "key_variable": "K"}
    assert dataclasses.replace(BASE, **limits).key(prompt(0)) == KEY


# Spellings that are equal; the first of each is the one of keys that are recorded.
SPELLINGS: list[list[dict[str, Any]]] = [
    [{"temperature": 0.0}, {"temperature": 0}, {"temperature": -0.0}, {"temperature": np.float64(0)}],
    [{"answer_tokens": 30}, {"answer_tokens": 30.0}, {"answer_tokens": np.int64(30)}],
    [{"extra": {"top_p": 1, "seed": 3}}, {"extra": {"seed": 3.0, "top_p": 1.0}}, {"extra": {"top_p": np.float32(1), "seed": np.int64(3)}}],
    [{"extra": {"a": [{"b": 2}], "c": 0.9}}, {"extra": {"a": ({"b": 2.0},), "c": 0.9}}],
    [{"base_url": "https://llm.example/v1"}, *({"base_url": url} for url in ("HTTPS://llm.example/v1", "https://LLM.Example:443/v1/"))],
    [{"base_url": "http://[fe80::a]/v1"}, {"base_url": " http://[FE80::A]:80/v1 "}],
]


@pytest.mark.parametrize("spellings", SPELLINGS)
def test_settings_that_are_equal_have_one_key_and_send_one_request(spellings: list[dict[str, Any]]) -> None:
    found = [dataclasses.replace(BASE, **change) for change in spellings]
    assert len({settings.key(prompt(0)) for settings in found}) == 1
    assert len({json.dumps([settings.identity(), settings.body(prompt(0))], sort_keys=True) for settings in found}) == 1
    identity = json.loads(json.dumps(found[-1].identity()))  # As recordings keep it.
    assert Settings.from_identity(identity).key(prompt(0)) == found[0].key(prompt(0))
    assert dataclasses.replace(BASE, extra={"seed": True}).key(prompt(0)) != dataclasses.replace(BASE, extra={"seed": 1}).key(prompt(0))


@pytest.mark.parametrize("server", LOCAL_SERVERS)
def test_local_servers_cost_nothing_and_are_sent_plain_chat_completions_without_a_key(tmp_path: Path, server: str) -> None:
    with FakeLLM() as fake:
        settings = Settings.local(server, "m", base_url=fake.url)
        settings.require_limit()
        Client(settings, cache=tmp_path / "c").ask([prompt(0)])
    [(body, headers)] = fake.calls
    assert body == {"model": "m", "messages": [{"role": "user", "content": prompt(0).text}], "max_tokens": 25}
    assert headers["authorization"] == "Bearer none"
    assert settings.body(dataclasses.replace(prompt(0), form="batched", n=10))["max_tokens"] == 250
    assert Settings.local(server, "m").base_url == f"http://127.0.0.1:{LOCAL_SERVERS[server]}/v1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "model: expected the id of a model"),
        ({"price": 0.15}, "price: expected a Price, got 0.15"),
        ({"key_variable": 5}, "key_variable: expected a text, got 5"),
        ({"token_limit_field": ""}, "token_limit_field: expected a text, got ''"),
        ({"token_limit_field": "model"}, "token_limit_field: expected the field that limits an answer, got model"),
        *(({"base_url": url}, r"base_url: expected http\(s\)://host/path, got")
          for url in ("api.example.org", "http://host:99999/v1", "http://host/v 1", "http://[::1/v1", "http://")),
        *(({"base_url": f"https://{where}"}, "base_url: expected no user name, password, query or fragment")
          for where in ("user:secret@example.org/v1", "example.org/v1?key=secret", "example.org/v1#secret")),
        ({"extra": [("top_p", 1)]}, "extra: expected further fields of the request, got a list"),
        *(({"extra": {name: 1}}, f"extra: expected further fields of the request, got {name}, which other settings decide")
          for name in ("temperature", "max_tokens", "max_completion_tokens", "n", "stream", "model")),
        *(({"extra": {"x": value}}, "extra: expected JSON values") for value in (NAN, INF, {1}, [object()])),
    ],
)  # fmt: skip
def test_bad_settings_are_named_without_telling_secrets(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(BASE, **change)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


NUMBERS = {
    "a positive whole number": ["answer_tokens", "concurrency", "max_failures", "token_cap"],
    "a whole number of at least 0": ["retries"],
    "a positive number": ["deadline", "requests_per_minute", "tokens_per_minute"],
    "a number of at least 0": ["budget", "backoff", "temperature"],
    "a number from 0 to 1": ["max_invalid"],
}


@pytest.mark.parametrize(("expected", "name"), [(expected, name) for expected, names in NUMBERS.items() for name in names])
def test_numbers_that_would_switch_a_limit_off_are_refused(expected: str, name: str) -> None:
    for value in [-1, NAN, INF, True, "5", *([2.5] * ("whole" in expected or "to 1" in expected)), *([0] * ("positive" in expected))]:
        with pytest.raises(ValueError, match=f"^{name}: expected {expected}, got {re.escape(repr(value))}$"):
            dataclasses.replace(BASE, **{name: value})
    for value in (1, 1.0, np.int64(1), np.float32(1)):
        found = getattr(dataclasses.replace(BASE, **{name: value}), name)
        assert (found, type(found)) == (1, int if "whole" in expected else float)


def test_every_number_among_the_settings_is_checked_and_prices_are_per_million_and_dated() -> None:
    found = {field.name for field in dataclasses.fields(Settings) if {"int", "float"} & set(str(field.type).split(" | "))}
    assert found == {name for names in NUMBERS.values() for name in names}
    assert Price(2.0, 8.0, "2026-01-01").of(1e6, 5e5) == 6.0
    for date in ("today", "2026-13-01", "20260101", None):
        with pytest.raises(ValueError, match=f"price date: expected YYYY-MM-DD, got {date!r}"):
            Price(2.0, 8.0, date)  # type: ignore[arg-type]
    for price in (NAN, INF, -1.0, "2", None):
        with pytest.raises(ValueError, match="price: expected two numbers of at least 0"):
            Price(price, 8.0, "2026-01-01")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allowed are vllm, ollama, llama-server"):
        Settings.local("mine", "m")
    with pytest.raises(ValueError, match="settings of a recording: expected exactly endpoint, model"):
        Settings.from_identity({"model": "m", "api_key": "x"})


HERE = ("http://localhost:1/v1", "http://LOCALHOST./v1", "http://[::1]:1/v1", "http://127.8.0.1", "http://0.0.0.0:8000")
ELSEWHERE = ("https://127.0.0.1.nip.io", "http://10.0.0.7", "http://localhost.example.org", "http://[::ffff:10.0.0.7]/v1")


@pytest.mark.parametrize("url", [*HERE, *ELSEWHERE])
def test_only_a_server_on_this_machine_needs_no_limit_unless_it_has_a_price(url: str) -> None:
    settings = Settings("m", url)
    assert settings.is_loopback == (url in HERE)
    if url in ELSEWHERE:
        with pytest.raises(ValueError, match="the price of m is not given: set token_cap, or price and budget"):
            settings.require_limit()
    for free in (dataclasses.replace(settings, price=FREE), dataclasses.replace(settings, token_cap=5), *[settings] * (url in HERE)):
        free.require_limit()
    with pytest.raises(ValueError, match="m costs money: set budget"):
        dataclasses.replace(settings, price=Price(1, 0, "2026-01-01")).require_limit()


def test_token_estimates_bracket_those_of_known_tokenizers() -> None:
    text = build_prompt(WMT_TASKS["wmt14ende"], [(HAT_WMT.smallest(), 24.0), (HAT_WMT.largest(), 26.5)], [HAT_WMT.largest()])
    # No tokenizer merges words, and none of those in use makes less than 1.5 characters a token of such text.
    assert len(text.text.split()) < fewest_tokens(text) < estimate_tokens(text) < len(text.text) / 1.5
