from __future__ import annotations

import json
import re
import socket
import struct
import sys
import time
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from llmpp_book.studies import questions as experiments
from llmpp_core.llm.client import Client, LLMStopped, Settings
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, PromptError, answer_prompt, offline_settings
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.llm.prompts import LEVELS, PromptTask, build_prompt
from llmpp_core.metrics import evaluate, summarise
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.features import HATFeatures
from llmpp_core.space.search_space import HAT_WMT
from llmpp_core.upstream import tfs_splits

TASK = PromptTask("t", "a task", "score", "a number", 0.0, 100.0, decimals=3)


def linear_score(arch: Architecture) -> float:
    return float(HATFeatures().transform([arch])[0] @ [0.01, 0, 0.001, 0.1, 0.01, 1, 0.001, 0.1, 0.1, 0.1])


@pytest.fixture
def archs(rng: np.random.Generator) -> list[Architecture]:
    return HAT_WMT.sample(30, rng)


def post(url: str, body: Any) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            urllib.request.Request(f"{url}/chat/completions", data)
        ) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_learns_from_the_demonstrations_in_the_prompt(archs: list[Architecture]) -> None:
    demonstrations = [(arch, linear_score(arch)) for arch in archs[:20]]
    true = [linear_score(arch) for arch in archs[20:]]
    predicted = [float(answer_prompt(build_prompt(TASK, demonstrations, [arch]).text)) for arch in archs[20:]]
    assert np.abs(np.subtract(predicted, true)).mean() < 0.3 * np.std(true)


@pytest.mark.parametrize("level", LEVELS)
def test_all_levels_and_forms_get_the_same_answer(archs: list[Architecture], level: str) -> None:
    demonstrations = [(arch, linear_score(arch)) for arch in archs[:10]]
    single = [answer_prompt(build_prompt(TASK, demonstrations, [arch], level).text) for arch in archs[10:13]]
    batched = answer_prompt(build_prompt(TASK, demonstrations, archs[10:13], level, "batched").text)
    as_json = answer_prompt(build_prompt(TASK, demonstrations, archs[10:13], level, "json").text, as_json=True)
    assert all(re.fullmatch(r"\d+\.\d{3}", text) for text in single)
    assert batched.splitlines() == [f"{i}: {text}" for i, text in enumerate(single, 1)]
    assert list(json.loads(as_json).values()) == [float(text) for text in single]


def test_few_demonstrations_are_averaged(archs: list[Architecture]) -> None:
    assert answer_prompt(build_prompt(TASK, [(archs[0], 20.0), (archs[1], 21.0)], [archs[2]]).text) == "20.500"


@pytest.mark.parametrize("text", ["", "Hello", "Example 1\nno architecture\nscore: 5", "Test architecture\nscore:"])
def test_other_prompts_are_refused(text: str) -> None:
    with pytest.raises(PromptError):
        answer_prompt(text)


def test_it_speaks_chat_completions_and_says_what_it_is(archs: list[Architecture]) -> None:
    prompt = build_prompt(TASK, [(arch, linear_score(arch)) for arch in archs[:10]], [archs[10]])
    messages = [{"role": "user", "content": prompt.text}]
    with OfflineEndpoint() as url:
        assert url.startswith("http://127.0.0.1:")
        status, body = post(url, {"model": MODEL, "messages": messages})
        assert (status, body["model"], body["choices"][0]["finish_reason"]) == (200, MODEL, "stop")
        assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        assert "not-an-llm" in MODEL
        status, body = post(url, {"model": "gpt-4", "messages": messages})
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert post(url, {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]})[0] == 400
        for bad in (b"", b"{", b"[]", b'{"model": 1}', json.dumps({"model": MODEL, "messages": [{"role": "user", "content": 5}]}).encode()):
            assert post(url, bad)[0] == 400
        assert post(url + "/elsewhere", {"model": MODEL, "messages": messages})[0] == 404


def test_the_client_gives_a_clear_line_for_a_model_it_does_not_have(tmp_path: Path, archs: list[Architecture]) -> None:
    with OfflineEndpoint() as url:
        client = Client(Settings("gpt-4", base_url=url, key_variable=None, token_cap=10**6), cache=tmp_path / "c")
        with pytest.raises(LLMStopped, match=f"gpt-4 at {url}: HTTP 404: there is no model 'gpt-4' here, only not-an-llm"):
            client.ask([build_prompt(TASK, [(archs[0], 1.0)], [archs[1]])])


def test_its_port_does_not_matter_to_the_cache(tmp_path: Path, archs: list[Architecture]) -> None:
    prompt = build_prompt(TASK, [(arch, linear_score(arch)) for arch in archs[:5]], [archs[5]])
    for _ in range(2):
        with OfflineEndpoint() as url:
            client = Client(offline_settings(url), cache=tmp_path / "c")
            assert client.ask([prompt])[0][0].status == "answered"
            assert client.budget.spent == 0
    assert len(client.cache) == 1
    assert client.counts.requests == 0


@pytest.mark.needs_data("tfs")
def test_the_whole_path_reaches_the_bar_on_the_nine_splits(tmp_path: Path) -> None:
    with OfflineEndpoint() as url:
        client = Client(offline_settings(url), cache=tmp_path / "c")
        for form in ("single", "batched", "json"):
            predictions = evaluate(
                lambda split, form=form: LLMPredictor(client, experiments.WMT_TASKS[split.task], form=form), tfs_splits()
            )
            mean = summarise(predictions).loc["mean"]
            assert mean["MAE", "mean"] <= 0.23
            assert mean["tau", "mean"] >= 0.75


def test_a_client_that_hangs_up_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with OfflineEndpoint() as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets the connection
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_answers_at_once_warn_of_nothing_and_leave_the_warning_filters(archs: list[Architecture]) -> None:
    demonstrations = [(arch, linear_score(arch)) for arch in archs]
    texts = [build_prompt(TASK, demonstrations[start : start + 5], archs[-1:]).text for start in range(25)] * 8
    interval = sys.getswitchinterval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        sys.setswitchinterval(1e-5)  # threads interrupt each other all the time, as on a loaded machine
        try:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(answer_prompt, texts))
        finally:
            sys.setswitchinterval(interval)
        assert list(warnings.filters) == before
    assert [str(warning.message) for warning in caught] == []
