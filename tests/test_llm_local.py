"""Servers of one's own on the command line: known by name, free, and named with what starts them where they are not there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from fake_llm_server import FakeLLM
from test_experiments import own  # noqa: F401  (a fixture)
from test_llm_commands import results, run  # noqa: F401  (a fixture)

from llmpp_book.studies.questions import Experiment
from llmpp_core.llm.local import START
from llmpp_core.llm.recordings import read_recording
from llmpp_core.llm.settings import LOCAL_SERVERS


def test_every_server_has_a_line_that_starts_it() -> None:
    assert set(START) == set(LOCAL_SERVERS)
    page = (Path(__file__).parents[1] / "book" / "local_models.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` | {LOCAL_SERVERS[name]} | `{START[name]}` |" in page for name in START)


@pytest.mark.parametrize("server", LOCAL_SERVERS)
def test_a_server_that_is_not_there_is_named_with_what_starts_it(
    server: str,
    own: Experiment,  # noqa: F811
    results: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("llmpp_core.llm.client.cache_dir", lambda: tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    assert run("prompts", "ask", "own-test", "--model", "m", "--local", server, "--base-url", url) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"no {server} answers at {url} (Connection refused); start it with: {START[server]}"
    # Nothing is sent, so nothing need be there.
    assert run("prompts", "ask", "own-test", "--model", "m", "--local", server, "--base-url", url, "--dry-run") == 0


def test_a_local_server_needs_no_limit_and_has_time(
    own: Experiment,  # noqa: F811
    results: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("llmpp_core.llm.client.cache_dir", lambda: tmp_path)
    with FakeLLM() as server:
        common = ("prompts", "ask", "own-test", "--model", "m", "--local", "ollama", "--base-url", server.url, "--log-probabilities", "5")
        # The batched prompts get single answers, which are invalid.
        assert run(*common) == 0
        assert {body["top_logprobs"] for body, _ in server.calls} == {5}
        asked = len(server.calls)
        assert run(*common) == 0
        assert len(server.calls) == asked == 88
    recorded = read_recording(results / "own-test" / "m.jsonl")
    assert recorded.settings.identity()["endpoint"] == "ollama"
    assert len(recorded.rows) == 88
