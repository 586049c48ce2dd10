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
from hat_costs import prompt_task

from llmpp_core.llm.client import Client, LLMStopped, Settings
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, PromptError, answer_prompt, offline_settings
from llmpp_core.llm.prompts import LEVELS, build_prompt
from llmpp_core.space.features import HATFeatures
from llmpp_core.space.search_space import HAT_WMT

TASK = prompt_task("t", "a task", "score", "a number", 0.0, 100.0, decimals=3)
ARCHS = HAT_WMT.sample(30, np.random.default_rng(0))
TRUE = HATFeatures().transform(ARCHS) @ [0.01, 0, 0.001, 0.1, 0.01, 1, 0.001, 0.1, 0.1, 0.1]
SHOWN = list(zip(ARCHS, TRUE.tolist(), strict=True))
PROMPT = build_prompt(TASK, SHOWN[:10], ARCHS[10:11])


def post(url: str, body: Any) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(f"{url}/chat/completions", body if isinstance(body, bytes) else json.dumps(body).encode())
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_learns_from_the_demonstrations_in_the_prompt() -> None:
    predicted = [float(answer_prompt(build_prompt(TASK, SHOWN[:20], [arch]).text)) for arch in ARCHS[20:]]
    assert np.abs(predicted - TRUE[20:]).mean() < 0.3 * np.std(TRUE[20:])
    # Few demonstrations are averaged.
    assert answer_prompt(build_prompt(TASK, [(ARCHS[0], 20.0), (ARCHS[1], 21.0)], ARCHS[2:3]).text) == "20.500"


@pytest.mark.parametrize("level", LEVELS)
def test_all_levels_and_forms_get_the_same_answer(level: str) -> None:
    single = [answer_prompt(build_prompt(TASK, SHOWN[:10], [arch], level).text) for arch in ARCHS[10:13]]
    batched, as_json = (
        answer_prompt(build_prompt(TASK, SHOWN[:10], ARCHS[10:13], level, form).text, as_json=form == "json")
        for form in ("batched", "json")
    )
    assert all(re.fullmatch(r"\d+\.\d{3}", text) for text in single)
    assert batched.splitlines() == [f"{i}: {text}" for i, text in enumerate(single, 1)]
    assert list(json.loads(as_json).values()) == [float(text) for text in single]


@pytest.mark.parametrize("text", ["", "Hello", "Example 1\nno architecture\nscore: 5", "Test architecture\nscore:", "Example 1"])
def test_other_prompts_are_refused(text: str) -> None:
    with pytest.raises(PromptError):
        answer_prompt(text)


def test_it_speaks_chat_completions_and_says_what_it_is(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": PROMPT.text}]
    with OfflineEndpoint() as url:
        assert url.startswith("http://127.0.0.1:")
        status, body = post(url, {"model": MODEL, "messages": messages})
        assert (status, body["model"], body["choices"][0]["finish_reason"]) == (200, MODEL, "stop")
        assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        assert "not-an-llm" in MODEL
        for bad in (b"", b"{", b"[]", b'{"model": 1}', *({"model": MODEL, "messages": [{"content": text}]} for text in (5, "Hello"))):
            assert post(url, bad)[0] == 400
        assert post(url + "/elsewhere", {"model": MODEL, "messages": messages})[0] == 404
        client = Client(Settings("gpt-4", base_url=url, key_variable=None, token_cap=10**6), cache=tmp_path / "c")
        with pytest.raises(LLMStopped, match=f"gpt-4 at {url}: HTTP 404: there is no model 'gpt-4' here, only not-an-llm"):
            client.ask([PROMPT])


def test_its_port_does_not_matter_to_the_cache_and_a_client_that_hangs_up_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with OfflineEndpoint() as url:
            client = Client(offline_settings(url), cache=tmp_path / "c")
            assert client.ask([PROMPT])[0][0].status == "answered"
            assert client.budget.spent == 0
            address = urlsplit(url)
            with socket.create_connection((address.hostname, address.port)) as broken:
                broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets the connection
                broken.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.1)
    assert (len(client.cache), client.counts.requests) == (1, 0)
    assert capfd.readouterr().err == ""


def test_answers_at_once_warn_of_nothing_and_leave_the_warning_filters() -> None:
    texts = [build_prompt(TASK, SHOWN[start : start + 5], ARCHS[-1:]).text for start in range(25)] * 8
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
