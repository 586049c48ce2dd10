"""The commands ``prompts`` and ``serve-*``: export and import up to the table that chapters show, asking, and what stops them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_llm_server import Act, FakeLLM, completion, ok
from own_questions import questions

from llmpp_book.studies import answers
from llmpp_core.llm.client import Client, Settings
from llmpp_core.llm.local import START
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, answer_prompt, offline_settings
from llmpp_core.llm.recordings import read_recording
from llmpp_core.llm.settings import LOCAL_SERVERS
from llmpp_core.metrics import summarise

Run = Callable[..., int]
ASK = ("prompts", "ask", "own-test", "--model", "m")


def answer_batch(path: Path, out: Path) -> list[dict[str, Any]]:
    """Do what the Batch API does with a file of requests, with the offline endpoint's answers."""
    lines = []
    for request in map(json.loads, path.read_text().splitlines()):
        message = {"role": "assistant", "content": answer_prompt(request["body"]["messages"][0]["content"])}
        body = {"model": request["body"]["model"], "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        lines.append({"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None})
    write(out, lines)
    return lines


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.needs_data("tfs")
def test_exported_requests_come_back_as_the_table_of_the_chapter(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answers, "RESULTS", tmp_path / "results")
    export = ("--out", tmp_path / "out", "--model", MODEL, "--endpoint", "offline")
    assert run("prompts", "export", "wmt-test", *export) == 0
    assert "198 of 198 requests" in capsys.readouterr().out
    assert answers.recordings("wmt-test") == []  # Begun, but "not recorded yet".
    answer_batch(tmp_path / "out" / "wmt-test-001.jsonl", tmp_path / "answers.jsonl")
    assert run("prompts", "import", tmp_path / "answers.jsonl") == 0
    assert "198 answers recorded, 0 of them invalid; 0 known; 0 lines rejected" in capsys.readouterr().out
    table = answers.answers("wmt-test", *answers.recordings("wmt-test"))
    mean = summarise(table[table["form"] == "single"]).loc["mean"]
    assert mean["MAE", "mean"] <= 0.23
    assert mean["tau", "mean"] >= 0.75
    # What is recorded is not pending any more, and what other experiments share with it is theirs too.
    assert run("prompts", "export", "wmt-test", *export) == 0
    assert "0 of 198 requests" in capsys.readouterr().out
    assert not list((tmp_path / "out").iterdir())
    assert run("prompts", "export", "wmt-samples", *export) == 0
    assert "720 of 900 requests" in capsys.readouterr().out


def test_nothing_but_requests_to_the_same_model_makes_room_for_requests(
    results: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / "own-test-001.jsonl"
    export = ("prompts", "export", "own-test", "--out", tmp_path / "out")
    assert run(*export) == run(*export) == 0
    before = file.read_text()
    assert run(*export, "--model", "another") == 2
    assert [path.name for path in results.glob("*/*")] == ["unnamed-llm.jsonl"]  # A refused export begins no recording.
    accented = ("prompts", "export", "own-test", "--model", "modèle", "--out", tmp_path / "modèle")
    assert run(*accented) == run(*accented) == 0
    filled = "".join(json.dumps({**json.loads(line), "text": "25"}) + "\n" for line in before.splitlines())
    file.write_text(filled)
    assert run(*export) == 2
    assert "own-test-001.jsonl: holds answers, or requests to another model" in capsys.readouterr().err
    assert file.read_text() == filled


def test_what_is_imported_meanwhile_stays(results: Path, exported: list[Any], run: Run, tmp_path: Path) -> None:
    session = answers.Session.open("own-test", Settings("unnamed-llm"), None)
    assert run("prompts", "import", write(tmp_path / "some.jsonl", exported[:30])) == 0
    session.record()
    assert len(read_recording(session.recording.path).rows) == 30


@pytest.fixture
def exported(results: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Export an experiment that needs no upstream files; returns good answers to all of it."""
    assert run("prompts", "export", "own-test", "--out", tmp_path) == 0
    lines = answer_batch(tmp_path / "own-test-001.jsonl", tmp_path / "good.jsonl")
    assert {line["custom_id"] for line in lines} == set(answers.expected("own-test", Settings("unnamed-llm")))
    capsys.readouterr()
    return lines


def test_every_bad_line_is_named_and_nothing_already_answered_is_lost(
    exported: list[dict[str, Any]], results: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prompts", "import", write(tmp_path / "first.jsonl", exported[:10])) == 0
    recording = results / "own-test" / "unnamed-llm.jsonl"
    before = read_recording(recording).rows
    capsys.readouterr()
    ids = [line["custom_id"] for line in exported]
    # Half a character, and fields for people.
    half = {"custom_id": ids[24], "text": "Score: 21.50 \ud83d", "labels": {"task": "x"}, "position": 1}
    texts = [{"custom_id": ids[i], "text": text} for i, text in ((1, "99"), (20, "21.50"), (20, "22.50"), (21, "2150"), (23, "21 or 22"))]
    expired = {"custom_id": ids[22], "error": {"code": "batch_expired"}, "response": None}
    bad = [{**exported[0], "custom_id": "f" * 64}, *texts, expired, half, "x"]
    assert run("prompts", "import", write(tmp_path / "bad.jsonl", bad)) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"rejected  bad.jsonl, line 1: unknown id: no exported request has it: '{'f' * 64}'",
        f"rejected  bad.jsonl, line 4: an id that was given before; the first answer counts: {ids[20]}",
        "rejected  bad.jsonl, line 7: no answer: {'code': 'batch_expired'}",
        "rejected  bad.jsonl, line 9: expected a JSON object with a custom_id: got '\"x\"'",
        "invalid   bad.jsonl, line 5: 2150 is outside 0 to 100",
        "invalid   bad.jsonl, line 6: nothing says which of 2 numbers is the answer, got '21 or 22'",
        "invalid   bad.jsonl, line 8: expected one number, got 'score: 21.50 \ufffd'",
        "4 answers recorded, 3 of them invalid; 1 known; 4 lines rejected",
        "own-test/unnamed-llm: 74 of 88 answers missing",
    ]
    after = read_recording(recording).rows
    assert before.items() <= after.items()
    assert len(after) == 14
    assert json.loads(after[ids[24]].stored.response)["choices"][0]["message"]["content"] == "Score: 21.50 \ud83d"


def test_a_wrong_file_is_named_in_a_few_lines_and_changes_nothing(
    exported: Any, results: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (results / "own-test" / "unnamed-llm.jsonl").read_bytes()
    others = "".join(json.dumps({"custom_id": f"{i:064}", "text": "25"}) + "\n" for i in range(88))
    request = "a request as it was exported, not an answer; import the file that came back, and 87 more such lines"
    for text, first, lines in (
        ((tmp_path / "own-test-001.jsonl").read_text(), request, 1),
        ("", "the file holds no line", 1),
        (others, f"unknown id: no exported request has it: '{0:064}'", 6),
        ("# A heading\n" * 88, "expected a JSON object with a custom_id: got '# A heading'", 6),
    ):
        (tmp_path / "wrong.jsonl").write_text(text)
        assert run("prompts", "import", tmp_path / "wrong.jsonl") == 1
        rejected = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rejected")]
        assert (rejected[0].split(": ", 1)[1], len(rejected)) == (first, lines)
        assert lines == 1 or rejected[-1] == "rejected  wrong.jsonl: 83 more such lines"
    assert (results / "own-test" / "unnamed-llm.jsonl").read_bytes() == before


def test_an_answers_file_that_is_not_there_is_told_at_once(exported: Any, run: Run, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("llmpp_book.studies.imports.expected", lambda *_: pytest.fail("the work began"))
    assert run("prompts", "import", "no-such-file.jsonl") == 1
    assert capsys.readouterr().err == "[Errno 2] No such file or directory: 'no-such-file.jsonl'\n"


def test_a_foreign_file_among_the_recordings_stops_no_command(
    exported: Any, results: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "own-test" / "foreign.jsonl").write_text("damaged\n")
    (results / "gone").mkdir()
    known = (results / "own-test" / "unnamed-llm.jsonl").read_text()
    (results / "gone" / "old.jsonl").write_text(known.replace('"own-test"', '"gone"'))
    for words, said in (
        (("prompts", "import", tmp_path / "good.jsonl"), "88 answers recorded"),
        (("prompts", "list"), "recorded: unnamed-llm"),
        ((*ASK, "--token-cap", "99", "--dry-run"), "88 requests to send"),
    ):
        with pytest.warns(UserWarning, match="foreign") as caught:
            assert run(*words) == 0
        assert said in capsys.readouterr().out
        assert words[1] != "import" or any("old.jsonl: unknown experiment 'gone'" in str(warning.message) for warning in caught)
    assert (results / "own-test" / "foreign.jsonl").read_text() == "damaged\n"


LIMITS = ("--token-cap", "--concurrency", "--deadline", "--requests-per-minute", "--tokens-per-minute", "--answer-tokens")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("prompts", "export", "nothing", "--out", "x"), 2, "unknown experiment 'nothing'; allowed are own-test"),
        (("prompts", "ask", "own-test"), 2, "the following arguments are required: --model"),
        (ASK, 2, "nothing limits what m may cost: give --token-cap, or --price and --budget"),
        ((*ASK, "--budget", "1", "--token-cap", "5"), 2, "--budget: expected a price with it"),
        ((*ASK, "--local", "mine"), 2, "unknown local server 'mine'; allowed are vllm, ollama, llama-server"),
        ((*ASK, "--price", "1", "2", "x", "--budget", "1"), 2, "--price: price date: expected"),
        ((*ASK, "--base-url", "ftp://x", "--token-cap", "5"), 2, "--base-url: expected http"),
        ((*ASK, "--token-cap", "99999999", "--key-variable", "NO_SUCH_KEY"), 3, "set the environment variable NO_SUCH_KEY"),
        (("serve-offline", "--port", "99999"), 2, "port must be 0-65535"),
        (("prompts", "export", "own-test", "--out", __file__), 2, "test_prompt_commands.py is a file; expected a folder"),
        ((*ASK, "--log-probabilities", "0"), 2, "expected 1 to 20 alternatives per token, got 0"),
        *[((*ASK, flag, "0"), 2, f"{flag}: expected a positive") for flag in LIMITS],
        ((*ASK, "--budget", "-1"), 2, "--budget: expected a number of at least 0, got -1.0"),
    ],
)
def test_bad_input_is_one_clear_line(
    results: Path, run: Run, words: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(results.glob("*/*"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (("--price", "1", "1", "2026-01-01", "--budget", "0.01"), "this exceeds --budget 0.01 by up to 0."),
        (("--token-cap", "7"), "this exceeds --token-cap 7 by up to "),
        (("--price", "1", "1", "2026-01-01", "--budget", "100", "--token-cap", "100000000"), ""),
    ],
)
def test_a_dry_run_says_when_a_limit_is_too_low(
    limits: tuple[str, ...], message: str, results: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*ASK, "--dry-run", *limits) == 0
    estimate, *rest = capsys.readouterr().out.splitlines()
    assert "88 requests to send, 0 already answered" in estimate
    assert bool(rest) == bool(message)
    assert message in "".join(rest)


def test_asking_records_the_answers_and_never_replaces_one(results: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with OfflineEndpoint() as url:
        price = ("--price", "0", "0", "2026-01-01")
        common = ("prompts", "ask", "own-test", "--model", MODEL, "--base-url", url, "--endpoint", "offline", *price)
        assert run(*common) == 0
    out, err = capsys.readouterr()
    assert "88 requests, 88 answered" in out + err
    [path] = results.glob("*/*")
    assert out.splitlines()[-1] == str(path)
    assert run("prompts", "list") == 0
    assert "recorded: not-an-llm-incontext-ridge-v1" in capsys.readouterr().out
    # A client that knows other answers leaves the recorded ones.
    before = path.read_bytes()
    session = answers.Session.open("own-test", offline_settings(url), mode="replay")
    other = {key: row.stored._replace(seconds=9.0) for key, row in session.recording.rows.items()}
    session.client = Client(session.client.settings, recordings=other, mode="replay")
    assert session.record() == []
    assert path.read_bytes() == before


def test_requests_that_failed_are_reported_and_a_failed_export_begins_no_recording(
    results: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        text = body["messages"][0]["content"]
        empty = server.prompts()[2:3] == [text]
        return Act(body=completion("", finish="length", prompt=text)) if empty else ok(body, number)

    with FakeLLM(script) as server:
        # A server of one's own needs no limit. The batched prompts get single answers, which are invalid.
        local = ("--local", "vllm", "--base-url", server.url, "--concurrency", "1", "--log-probabilities", "5")
        assert run(*ASK, *local) == 1
        first, last = (text.splitlines()[-1] for text in capsys.readouterr())
        assert first == str(results / "own-test" / "m.jsonl")
        assert last.startswith("2 requests failed, the first: ")  # both samples of one prompt
        assert "--answer-tokens" in last
        assert {body["top_logprobs"] for body, _ in server.calls} == {5}
        asked = len(server.calls)
        server.script = ok
        assert run(*ASK, *local) == 0
        assert len(server.calls) - asked == 2
    recorded = read_recording(results / "own-test" / "m.jsonl")
    assert (recorded.settings.identity()["endpoint"], len(recorded.rows)) == ("vllm", 88)

    def fail(*arguments: Any) -> list[Path]:
        raise OSError("no space left")

    monkeypatch.setattr("llmpp_core.llm.batches.write_batches", fail)
    for words in (("--model", "n"), ("--model", "m", "--endpoint", "vllm", "--log-probabilities", "5")):
        assert run("prompts", "export", "own-test", *words, "--out", tmp_path / "out") == 1
    # What was there before stays.
    assert [path.name for path in results.glob("*/*")] == ["m.jsonl"]


@pytest.mark.parametrize("server", LOCAL_SERVERS)
def test_a_server_that_is_not_there_is_named_with_what_starts_it(
    server: str, results: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "book" / "language_models.md").read_text(encoding="utf-8")
    assert f"| `{server}` | {LOCAL_SERVERS[server]} | `{START[server]}` |" in page
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    assert run(*ASK, "--local", server, "--base-url", url) == 1
    assert capsys.readouterr().err == f"no {server} answers at {url} (Connection refused); start it with: {START[server]}\n"
    # Nothing is sent, so nothing need be there.
    assert run(*ASK, "--local", server, "--base-url", url, "--dry-run") == 0


@pytest.mark.parametrize("words", [("serve-offline",), ("serve-model", "model.gguf")])
def test_a_port_in_use_or_a_file_that_cannot_be_served_is_named(
    words: tuple[str, ...], run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "xllamacpp", ModuleType("xllamacpp"))
    Path("model.gguf").write_bytes(b"GGUF")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(*words, "--port", port) == 1
    assert capsys.readouterr().err == f"port {port} of 127.0.0.1 is in use: choose another with --port\n"
    assert run("serve-model", __file__) == 2
    assert capsys.readouterr().err.endswith("test_prompt_commands.py is no GGUF file\n")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert run("serve-model", __file__) == 2
    assert capsys.readouterr().err == "the server of language models is not installed: pip install xllamacpp\n"


def test_serve_offline_serves_until_interrupted(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "llmpp_book", "serve-offline", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(rf"{MODEL}, which is not a language model, answers at (http://127\.0\.0\.1:\d+/v1); stop with Ctrl-C\n", line)
        assert found
        client = Client(offline_settings(found[1]), cache=tmp_path / "c")
        assert client.ask([questions()[0].prompt])[0][0].status == "answered"
    finally:
        process.send_signal(2)
        assert process.wait(10) == 0
