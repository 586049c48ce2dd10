"""Export and import through the command line, up to the table that chapters show."""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_llm_server import Act, FakeLLM, completion, ok
from test_experiments import own  # noqa: F401  (a fixture)

from llmpp_book.commands.prompts import add_commands
from llmpp_book.studies import questions as experiments
from llmpp_book.studies.questions import Experiment
from llmpp_core.llm.client import Settings
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, answer_prompt
from llmpp_core.llm.recordings import read_recording
from llmpp_core.metrics import summarise


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    try:
        found = parser.parse_args([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return int(found.command(found))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "results"
    monkeypatch.setattr(experiments, "RESULTS", folder)
    return folder


def answer_batch(path: Path, out: Path) -> list[dict[str, Any]]:
    """Do what the Batch API does with a file of requests, with the offline endpoint's answers."""
    lines = []
    for line in path.read_text().splitlines():
        request = json.loads(line)
        message = {"role": "assistant", "content": answer_prompt(request["body"]["messages"][0]["content"])}
        body = {"model": request["body"]["model"], "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        lines.append({"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None})
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def score(name: str, recording: str, results: Path) -> tuple[float, float]:
    table = experiments.answers(name, recording, results)
    assert set(table["status"]) == {"answered"}
    mean = summarise(table[(table["form"] == "single") & (table["sample"] == 0)]).loc["mean"]
    return mean["MAE", "mean"], mean["tau", "mean"]


@pytest.mark.needs_data("tfs")
def test_exported_requests_come_back_as_the_table_of_the_chapter(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prompts", "export", "wmt-test", "--out", tmp_path / "out", "--model", MODEL, "--endpoint", "offline") == 0
    assert "198 of 198 requests" in capsys.readouterr().out
    assert experiments.recordings("wmt-test", results) == []  # Begun, but "not recorded yet".
    answer_batch(tmp_path / "out" / "wmt-test-001.jsonl", tmp_path / "answers.jsonl")
    assert run("prompts", "import", tmp_path / "answers.jsonl") == 0
    assert "198 answers recorded, 0 of them invalid; 0 known; 0 lines rejected" in capsys.readouterr().out
    [name] = experiments.recordings("wmt-test", results)
    mae, tau = score("wmt-test", name, results)
    assert mae <= 0.23
    assert tau >= 0.75
    # What is recorded is not pending any more, and what other experiments share with it is theirs too.
    assert run("prompts", "export", "wmt-test", "--out", tmp_path / "out", "--model", MODEL, "--endpoint", "offline") == 0
    assert "0 of 198 requests" in capsys.readouterr().out
    assert not list((tmp_path / "out").iterdir())
    assert run("prompts", "export", "wmt-samples", "--out", tmp_path / "out", "--model", MODEL, "--endpoint", "offline") == 0
    assert "720 of 900 requests" in capsys.readouterr().out


@pytest.fixture
def exported(own: Experiment, results: Path, tmp_path: Path) -> list[dict[str, Any]]:  # noqa: F811
    """Export an experiment that needs no upstream files; returns good answers to all of it."""
    assert run("prompts", "export", "own-test", "--out", tmp_path) == 0
    return answer_batch(tmp_path / "own-test-001.jsonl", tmp_path / "good.jsonl")


def test_without_a_model_the_requests_are_for_any(exported: Any, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prompts", "import", tmp_path / "good.jsonl") == 0
    assert "own-test/unnamed-llm: 0 of 88 answers missing" in capsys.readouterr().out
    assert score("own-test", "unnamed-llm", results)[0] < 0.5


def test_every_bad_line_is_named_and_nothing_already_answered_is_lost(
    exported: list[dict[str, Any]], results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "first.jsonl").write_text("".join(json.dumps(line) + "\n" for line in exported[:10]))
    assert run("prompts", "import", tmp_path / "first.jsonl") == 0
    recording = results / "own-test" / "unnamed-llm.jsonl"
    before = read_recording(recording).rows
    capsys.readouterr()
    bad = [
        {**exported[0], "custom_id": "f" * 64},
        {"custom_id": exported[1]["custom_id"], "text": "99"},
        {"custom_id": exported[20]["custom_id"], "text": "21.50"},
        {"custom_id": exported[20]["custom_id"], "text": "22.50"},
        {"custom_id": exported[21]["custom_id"], "text": "2150"},
        {"custom_id": exported[22]["custom_id"], "error": {"code": "batch_expired"}, "response": None},
        {"custom_id": exported[23]["custom_id"], "text": "21 or 22"},
        {"custom_id": exported[24]["custom_id"], "text": "Score: 21.50"},
    ]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bad) + "not json\n")
    assert run("prompts", "import", tmp_path / "bad.jsonl") == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith(("rejected", "invalid"))] == [
        f"rejected  bad.jsonl, line 1: unknown id: no exported request has it: '{'f' * 64}'",
        f"rejected  bad.jsonl, line 4: an id that was given before; the first answer counts: {exported[20]['custom_id']}",
        "rejected  bad.jsonl, line 6: no answer: {'code': 'batch_expired'}",
        "rejected  bad.jsonl, line 9: expected a JSON object with a custom_id: got 'not json'",
        "invalid   bad.jsonl, line 5: 2150 is outside 0 to 100",
        "invalid   bad.jsonl, line 7: nothing says which of 2 numbers is the answer, got '21 or 22'",
    ]
    assert shown[-2:] == [
        "4 answers recorded, 2 of them invalid; 1 known; 4 lines rejected",
        "own-test/unnamed-llm: 74 of 88 answers missing",
    ]
    after = read_recording(recording).rows
    assert before.items() <= after.items()
    assert len(after) == 14


@pytest.mark.parametrize("wrong", ["requests", "nothing", "another file's answers", "prose"])
def test_a_wrong_file_is_named_in_a_few_lines_and_changes_nothing(
    exported: list[dict[str, Any]], results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    path = tmp_path / "wrong.jsonl"
    requests = (tmp_path / "own-test-001.jsonl").read_text()
    others = "".join(json.dumps({"custom_id": f"{i:064}", "text": "25"}) + "\n" for i in range(88))
    path.write_text({"requests": requests, "nothing": "", "another file's answers": others, "prose": "# A heading\n" * 88}[wrong])
    before = (results / "own-test" / "unnamed-llm.jsonl").read_bytes()
    capsys.readouterr()
    assert run("prompts", "import", path) == 1
    shown = capsys.readouterr().out.splitlines()
    rejected = [line for line in shown if line.startswith("rejected")]
    assert (
        rejected[0].split(": ", 1)[1]
        == {
            "requests": "a request as it was exported, not an answer; import the file that came back, and 87 more such lines",
            "nothing": "the file holds no line",
            "another file's answers": f"unknown id: no exported request has it: '{0:064}'",
            "prose": "expected a JSON object with a custom_id: got '# A heading'",
        }[wrong]
    )
    assert len(rejected) == (1 if wrong in ("requests", "nothing") else 6)
    assert wrong in ("requests", "nothing") or rejected[-1] == "rejected  wrong.jsonl: 83 more such lines"
    assert (results / "own-test" / "unnamed-llm.jsonl").read_bytes() == before


def test_a_foreign_file_among_the_recordings_stops_no_command(
    exported: list[dict[str, Any]], results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmpp_core.llm.client.cache_dir", lambda: tmp_path)
    (results / "own-test" / "foreign.jsonl").write_text("damaged\n")
    (results / "gone").mkdir()
    known = (results / "own-test" / "unnamed-llm.jsonl").read_text()
    (results / "gone" / "old.jsonl").write_text(known.replace('"own-test"', '"gone"'))
    with pytest.warns(UserWarning, match="foreign") as caught:
        assert run("prompts", "import", tmp_path / "good.jsonl") == 0
    assert any("old.jsonl: unknown experiment 'gone'" in str(warning.message) for warning in caught)
    assert "88 answers recorded" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="foreign"):
        assert run("prompts", "list") == 0
    assert "recorded: unnamed-llm" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="foreign"):
        assert run("prompts", "ask", "own-test", "--model", "m", "--token-cap", "99", "--dry-run") == 0
    assert (results / "own-test" / "foreign.jsonl").read_text() == "damaged\n"


def test_half_a_character_and_fields_for_people_are_imported(exported: Any, results: Path, tmp_path: Path) -> None:
    half = json.dumps({"custom_id": exported[0]["custom_id"], "text": "21.50 \ud83d", "labels": {"task": "x"}, "position": 1})
    (tmp_path / "half.jsonl").write_text(half)
    assert run("prompts", "import", tmp_path / "half.jsonl") == 0
    [row] = read_recording(results / "own-test" / "unnamed-llm.jsonl").rows.values()
    assert json.loads(row.stored.response)["choices"][0]["message"]["content"] == "21.50 \ud83d"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("prompts", "export", "nothing", "--out", "x"), 2, "unknown experiment 'nothing'; allowed are own-test"),
        (("prompts", "ask", "own-test"), 2, "the following arguments are required: --model"),
        (("prompts", "ask", "own-test", "--model", "m"), 2, "nothing limits what m may cost: give --token-cap, or --price and --budget"),
        (
            ("prompts", "ask", "own-test", "--model", "m", "--local", "mine"),
            2,
            "unknown server 'mine'; allowed are vllm, ollama, llama-server",
        ),
        (("prompts", "ask", "own-test", "--model", "m", "--price", "1", "2", "x", "--budget", "1"), 2, "--price: price date: expected"),
        (("prompts", "ask", "own-test", "--model", "m", "--base-url", "ftp://x", "--token-cap", "5"), 2, "--base-url: expected http"),
        (
            ("prompts", "ask", "own-test", "--model", "m", "--token-cap", "99999999", "--key-variable", "NO_SUCH_KEY"),
            1,
            "set the environment variable NO_SUCH_KEY",
        ),
        (("serve-offline", "--port", "99999"), 2, "port must be 0-65535"),
        (("prompts", "export", "own-test", "--out", __file__), 2, "test_llm_commands.py is a file; expected a folder"),
        (
            ("prompts", "export", "own-test", "--out", "x", "--log-probabilities", "21"),
            2,
            "expected 1 to 20 alternatives per token, got 21",
        ),
        (("prompts", "import", "no-such-file.jsonl"), 1, "No such file or directory: 'no-such-file.jsonl'"),
    ],
)
def test_bad_input_is_one_clear_line(
    own: Experiment,  # noqa: F811
    results: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("llmpp_core.llm.client.cache_dir", lambda: tmp_path)
    assert run(*arguments) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last
    assert not list(results.glob("*/*"))


LIMITS = ("--budget", "--token-cap", "--concurrency", "--deadline", "--requests-per-minute", "--tokens-per-minute", "--answer-tokens")


@pytest.mark.parametrize("value", ["-3", "0", "nan", "inf", "many"])
@pytest.mark.parametrize("flag", [*LIMITS, "--log-probabilities"])
def test_limits_are_positive_numbers(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prompts", "ask", "own-test", "--model", "m", flag, value) == 2
    assert re.search(rf"argument {flag}: expected (a positive .*number|at most one argument)", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (("--price", "1", "1", "2026-01-01", "--budget", "0.01"), "this exceeds --budget 0.01 by up to 0."),
        (("--token-cap", "7"), "this exceeds --token-cap 7 by up to "),
        (("--price", "1", "1", "2026-01-01", "--budget", "100", "--token-cap", "100000000"), ""),
    ],
)
def test_a_dry_run_says_when_a_limit_is_too_low(
    limits: tuple[str, ...],
    message: str,
    own: Experiment,  # noqa: F811
    results: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("llmpp_core.llm.client.cache_dir", lambda: tmp_path)
    assert run("prompts", "ask", "own-test", "--model", "m", "--dry-run", *limits) == 0
    estimate, *rest = capsys.readouterr().out.splitlines()
    assert "88 requests to send" in estimate
    assert bool(rest) == bool(message)
    assert message in "".join(rest)


def test_requests_that_failed_are_reported_and_a_failed_export_begins_no_recording(
    own: Experiment,  # noqa: F811
    results: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        text = body["messages"][0]["content"]
        empty = server.prompts()[2:3] == [text]
        return Act(body=completion("", finish="length", prompt=text)) if empty else ok(body, number)

    monkeypatch.setattr("llmpp_core.llm.client.cache_dir", lambda: tmp_path)
    with FakeLLM(script) as server:
        assert run("prompts", "ask", "own-test", "--model", "m", "--local", "vllm", "--base-url", server.url, "--concurrency", "1") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("2 requests failed, the first: ")  # both samples of one prompt
    assert "--answer-tokens" in last

    def fail(*arguments: Any) -> list[Path]:
        raise OSError("no space left")

    monkeypatch.setattr("llmpp_core.llm.batches.write_batches", fail)
    assert run("prompts", "export", "own-test", "--model", "n", "--out", tmp_path / "out") == 1
    assert run("prompts", "export", "own-test", "--model", "m", "--endpoint", "vllm", "--out", tmp_path / "out") == 1
    # What was there before stays.
    assert [path.name for path in results.glob("*/*")] == ["m.jsonl"]


@pytest.mark.parametrize("words", [("serve-offline",), ("serve-model", "model.gguf")])
def test_a_port_in_use_is_named(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "xllamacpp", ModuleType("xllamacpp"))
    Path("model.gguf").write_bytes(b"GGUF")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(*words, "--port", port) == 1
    assert capsys.readouterr().err == f"port {port} of 127.0.0.1 is in use: choose another with --port\n"


@pytest.mark.parametrize(
    ("installed", "code", "message"),
    [
        (ModuleType("xllamacpp"), 2, "test_llm_commands.py is no GGUF file"),
        (None, 2, "the server of language models is not installed: pip install xllamacpp"),
    ],
)
def test_what_cannot_be_served_is_named(
    installed: ModuleType | None, code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", installed)
    assert run("serve-model", __file__) == code
    assert message in capsys.readouterr().err


def test_asking_records_the_answers(
    own: Experiment,  # noqa: F811
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmpp_core.llm.client.cache_dir", lambda: tmp_path)
    with OfflineEndpoint() as url:
        common = ("own-test", "--model", MODEL, "--base-url", url, "--endpoint", "offline", "--price", "0", "0", "2026-01-01")
        assert run("prompts", "ask", *common, "--dry-run") == 0
        assert "88 requests to send, 0 already answered" in capsys.readouterr().out
        assert experiments.recordings("own-test", results) == []
        assert run("prompts", "ask", *common) == 0
        assert "88 requests, 88 answered" in capsys.readouterr().out
    assert run("prompts", "list") == 0
    assert "recorded: not-an-llm-incontext-ridge-v1" in capsys.readouterr().out


def test_serve_offline_serves_until_interrupted() -> None:
    code = """
import argparse
from llmpp_book.commands.prompts import add_commands
parser = argparse.ArgumentParser()
add_commands(parser.add_subparsers())
arguments = parser.parse_args(["serve-offline", "--port", "0"])
raise SystemExit(arguments.command(arguments))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith(f"{MODEL}, which is not a language model, answers at http://127.0.0.1:")
        url = line.split("answers at ")[1].split(";")[0]
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/models") as reply:
            assert json.load(reply)["data"][0]["id"] == MODEL
    finally:
        process.send_signal(2)
        assert process.wait(10) == 0


def test_exports_name_the_key_of_each_answer(exported: list[dict[str, Any]]) -> None:
    assert {line["custom_id"] for line in exported} == set(experiments.expected("own-test", Settings("unnamed-llm")))
