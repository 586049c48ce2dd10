from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from fake_llm_server import prompt

from llmpp_core.experiments import WMT_TASKS
from llmpp_core.llm_settings import FREE, LOCAL_SERVERS, Price, Settings, estimate_tokens, fewest_tokens
from llmpp_core.prompts import Prompt, build_prompt
from llmpp_core.space import HAT_WMT

BASE = Settings("m", temperature=0.0)


@pytest.mark.parametrize(
    "change",
    [
        *({"model": "n"}, {"base_url": "http://127.0.0.1:1/v1"}, {"endpoint": "elsewhere"}, {"temperature": 1.0}, {"temperature": None}),
        *({"answer_tokens": 50}, {"token_limit_field": "max_completion_tokens"}, {"reasoning_effort": "low"}, {"extra": {"top_p": 0.9}}),
    ],
)
def test_the_key_covers_all_that_answers_depend_on(change: dict[str, Any]) -> None:
    assert dataclasses.replace(BASE, **change).key(prompt(0)) != BASE.key(prompt(0))


def test_the_key_covers_prompt_form_and_sample_and_nothing_else() -> None:
    pieces = Prompt("one ", "two", "json", 2, 0.0, 100.0)
    assert BASE.key(prompt(0)) != BASE.key(prompt(1))
    assert BASE.key(prompt(0), 1) != BASE.key(prompt(0), 0)
    assert BASE.key(pieces) != BASE.key(dataclasses.replace(pieces, form="batched"))
    assert BASE.key(pieces) == BASE.key(dataclasses.replace(pieces, prefix="one", query=" two"))
    limits = {"concurrency": 1, "deadline": 1.0, "retries": 0, "budget": 1.0, "token_cap": 5, "price": FREE, "key_variable": "K"}
    assert dataclasses.replace(BASE, **limits).key(prompt(0)) == BASE.key(prompt(0))
    assert dataclasses.replace(BASE, base_url=BASE.base_url + "/").key(prompt(0)) == BASE.key(prompt(0))


def test_the_key_is_the_same_on_every_machine() -> None:
    assert BASE.key(prompt(0)) == "ba172a61c242e27fe1aceea15e000f24b51519f26c789435f08cb88d537eacd6"


def test_recordings_can_rebuild_the_settings_of_a_key() -> None:
    settings = Settings("m", "http://10.0.0.7:8000/v1", reasoning_effort="low", extra={"seed": 1})
    identity = json.loads(json.dumps(settings.identity()))
    assert Settings.from_identity(identity).key(prompt(0)) == settings.key(prompt(0))
    with pytest.raises(ValueError, match="settings of a recording: expected exactly endpoint, model"):
        Settings.from_identity({"model": "m", "api_key": "x"})


def test_unset_fields_are_not_sent() -> None:
    assert Settings("m").body(prompt(0)) == {"model": "m", "messages": [{"role": "user", "content": prompt(0).text}], "max_tokens": 25}


def test_a_batch_may_answer_with_that_many_tokens_more() -> None:
    assert Settings("m").body(dataclasses.replace(prompt(0), form="batched", n=10))["max_tokens"] == 250


@pytest.mark.parametrize("server", LOCAL_SERVERS)
def test_local_servers_need_no_key_and_cost_nothing(server: str) -> None:
    settings = Settings.local(server, "m", temperature=0.0)
    assert settings.is_loopback
    assert settings.key_variable is None
    assert settings.temperature == 0.0
    settings.require_limit()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "model: expected the id of a model"),
        ({"base_url": "api.example.org"}, r"base_url: expected http\(s\)://host/path, got 'api.example.org'"),
        ({"base_url": "https://user:secret@example.org/v1"}, "base_url: expected no user name, password or query"),
        ({"base_url": "https://example.org/v1?key=secret"}, "base_url: expected no user name, password or query"),
        ({"concurrency": 0}, "concurrency: expected a positive number, got 0"),
        ({"requests_per_minute": -1.0}, "requests_per_minute: expected a positive number, got -1.0"),
    ],
)
def test_bad_settings_are_named_without_telling_secrets(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(BASE, **change)
    assert "secret" not in str(error.value)


def test_prices_are_per_million_and_dated() -> None:
    assert Price(2.0, 8.0, "2026-01-01").of(1e6, 5e5) == 6.0
    with pytest.raises(ValueError, match="price date: expected YYYY-MM-DD, got 'today'"):
        Price(2.0, 8.0, "today")
    with pytest.raises(ValueError, match="price: expected two numbers of at least 0"):
        Price(float("nan"), 8.0, "2026-01-01")
    with pytest.raises(ValueError, match="allowed are vllm, ollama, llama-server"):
        Settings.local("mine", "m")


@pytest.mark.parametrize(
    ("url", "loopback"), [("http://localhost:1/v1", True), ("http://[::1]:1/v1", True), ("https://127.0.0.1.nip.io", False)]
)
def test_loopback(url: str, loopback: bool) -> None:
    assert Settings("m", url).is_loopback is loopback


def test_token_estimates_bracket_those_of_known_tokenizers() -> None:
    text = build_prompt(WMT_TASKS["wmt14ende"], [(HAT_WMT.smallest(), 24.0), (HAT_WMT.largest(), 26.5)], [HAT_WMT.largest()])
    # No tokenizer merges words, and none of those in use makes less than 1.5 characters a token of such text.
    assert len(text.text.split()) < fewest_tokens(text) < estimate_tokens(text) < len(text.text) / 1.5
