"""Recorded answers of open models can be had again: the same weights, at temperature 0, write the same text.

Ten requests of the recording are asked anew of llama-cpp-python's server, where LLMPP_GGUF names the weights and the package is installed.
What compares them is tested against a server that repeats the recording but for one answer. The page's numbers are computed too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_llm_server import Act, FakeLLM, completion

from llmpp_book.studies.answers import RESULTS, answers, expected
from llmpp_core.llm.answers import read_reply
from llmpp_core.llm.client import Client
from llmpp_core.llm.local import DEADLINE
from llmpp_core.llm.recordings import read_recording, recording_path
from llmpp_core.metrics import summarise

#: Recordings of wmt-test, by the sha256 of the weights that answered.
WEIGHTS = {
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32": "qwen2.5-coder-0.5b-instruct",
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046": "qwen2.5-coder-1.5b-instruct",
}


def recorded(name: str) -> Path:
    return recording_path(RESULTS, "wmt-test", name)


def differing(path: Path, url: str, folder: Path, n: int = 10) -> list[str]:
    """Ask the first `n` requests of a recording of wmt-test again; returns the keys whose text has changed."""
    recording = read_recording(path)
    settings = replace(recording.settings, base_url=url, key_variable=None, token_cap=10**7, concurrency=1, deadline=DEADLINE)
    rows = recording.rows
    asked = {key: question.prompt for key, (question, sample) in expected("wmt-test", settings).items() if key in rows and not sample}
    keys = list(asked)[:n]
    assert len(keys) == n
    replies = Client(settings, cache=folder / "c").ask([asked[key] for key in keys])
    texts = [read_reply(rows[key].stored.response).text for key in keys]
    return [key for key, text, (answer,) in zip(keys, texts, replies, strict=True) if answer.text != text]


@pytest.fixture
def server() -> Iterator[tuple[str, str]]:
    """Serve the weights of LLMPP_GGUF; yields the name of their recording and the URL."""
    weights = Path(os.environ.get("LLMPP_GGUF", ""))
    if not weights.is_file():
        pytest.skip("LLMPP_GGUF names no file with weights of a recorded open model")
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed: pip install 'llama-cpp-python[server]'")
    with open(weights, "rb") as file:
        name = WEIGHTS.get(hashlib.file_digest(file, "sha256").hexdigest())
    if name is None:
        pytest.skip(f"{weights} holds other weights than those that were recorded")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--model", str(weights), "--host", "127.0.0.1", "--port", str(port), "--n_ctx", "8192"]
    process = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.5)
        assert process.poll() is None, "the server ended"
        yield name, f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.needs_data("tfs")
def test_ten_recorded_answers_are_obtained_again(server: tuple[str, str], tmp_path: Path) -> None:
    name, url = server
    assert differing(recorded(name), url, tmp_path) == []


@pytest.mark.needs_data("tfs")
@pytest.mark.parametrize("name", WEIGHTS.values())
def test_a_changed_answer_is_found(name: str, tmp_path: Path) -> None:
    path = recorded(name)
    recording = read_recording(path)
    prompts = {question.prompt.text: key for key, (question, _) in expected("wmt-test", recording.settings).items()}

    def repeat(body: dict[str, Any], number: int) -> Act:
        text = body["messages"][0]["content"]
        said = json.loads(recording.rows[prompts[text]].stored.response)["choices"][0]["message"]["content"]
        return Act(body=completion("30.00" if len(server.calls) == 7 else said, prompt=text))

    with FakeLLM(repeat) as server:
        assert len(differing(path, server.url, tmp_path)) == 1
        assert len(server.calls) == 10


@pytest.mark.needs_data("tfs")
@pytest.mark.parametrize(("name", "size"), [(name, name.split("-")[-2].removesuffix("b")) for name in WEIGHTS.values()])
def test_the_page_tells_what_is_recorded(name: str, size: str) -> None:
    table = answers("wmt-test", name)
    table = table[table["form"] == "single"]
    assert set(table["status"]) == {"answered"}
    different = table.groupby(["task", "split"])["predicted"].nunique()
    mean = summarise(table).loc["mean"]
    tau = "none: one number for all ranks nothing" if math.isnan(mean["tau", "mean"]) else f"{mean['tau', 'mean']:.2f}"
    told = f"all are numbers, {different.min()} to {different.max()} different ones per split | {mean['MAE', 'mean']:.2f} | {tau} |"
    assert f"| {size} billion | {told}" in (Path(__file__).parents[1] / "book" / "language_models.md").read_text(encoding="utf-8")
