"""Batch files, as they leave and as they come back.

Kinds of fault: files in the encodings that editors and shells write; a wrong file, whose every line is wrong; lines that look like answers
and hold none (siblings: an error line, a failed request, a reply that says that the server failed, an allowance spent on reasoning).
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from fake_llm_server import completion, prompt

from llmpp_core.llm.batches import read_batches, write_batches
from llmpp_core.llm.run import Job
from llmpp_core.llm.settings import Settings

SETTINGS = Settings("vendor/model:1", temperature=0.0)


def test_batch_files_hold_every_request_once_and_keep_the_limits(tmp_path: Path) -> None:
    jobs = [Job(SETTINGS.key(prompt(i)), prompt(i), 0) for i in range(25)]
    assert write_batches([], SETTINGS, tmp_path, "none") == []
    for limits, files in (({}, 1), ({"max_requests": 10}, 3), ({"max_bytes": 2000}, 4)):
        paths = write_batches(jobs, SETTINGS, tmp_path, "x", **limits)
        assert len(paths) >= files
        assert all(path.stat().st_size <= limits.get("max_bytes", 200_000_000) for path in paths)
        lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        assert [line["custom_id"] for line in lines] == [job.key for job in jobs]
        assert [line["body"] for line in lines] == [SETTINGS.body(job.prompt) for job in jobs]
        assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
        assert sorted(tmp_path.glob("x-*.jsonl")) == paths  # Files of an earlier export are gone.


def test_answers_files_are_read_line_by_line(tmp_path: Path) -> None:
    good = {"custom_id": "a", "response": {"status_code": 200, "body": completion("25")}, "error": None}
    lines = [
        json.dumps(good),
        "",
        json.dumps({"custom_id": "b", "text": "26.5"}),
        "{broken",
        json.dumps({"id": "no id"}),
        json.dumps({"custom_id": "c", "response": None, "error": {"code": "batch_expired"}}),
        json.dumps({"custom_id": "d", "response": {"status_code": 500, "body": {}}}),
        json.dumps({"custom_id": "e", "response": {"status_code": 200, "body": {"choices": []}}}),
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    found = list(read_batches([tmp_path / "answers.jsonl"]))
    assert [(line.where.split("line ")[1], line.key, bool(line.response)) for line in found] == [
        *[("1", "a", True), ("3", "b", True), ("4", "", False), ("5", "", False), ("6", "c", False), ("7", "d", False), ("8", "e", False)]
    ]
    assert "batch_expired" in found[4].detail
    assert all(bool(line.problem) != bool(line.response) for line in found)


ANSWERS = "".join(json.dumps({"custom_id": name, "text": text}, ensure_ascii=False) + "\n" for name, text in (("a", "25.3"), ("b", "≈ 26")))
ENCODINGS = {
    "plain": ANSWERS.encode(),
    "UTF-8 with a mark": ANSWERS.encode("utf-8-sig"),
    "UTF-16, little": codecs.BOM_UTF16_LE + ANSWERS.encode("utf-16-le"),
    "UTF-16, big": codecs.BOM_UTF16_BE + ANSWERS.encode("utf-16-be"),
    "UTF-32": ANSWERS.encode("utf-32"),
    "CRLF": ANSWERS.replace("\n", "\r\n").encode(),
    "CRLF, UTF-16": ANSWERS.replace("\n", "\r\n").encode("utf-16"),
    "CR": ANSWERS.replace("\n", "\r").encode(),
    "no last line break": ANSWERS.encode().strip(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_answers_are_read_in_the_encodings_that_editors_and_shells_write(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(ENCODINGS[encoding])
    found = list(read_batches([tmp_path / "x.jsonl"]))
    texts = [json.loads(line.response)["choices"][0]["message"]["content"] for line in found]
    assert [(line.key, text) for line, text in zip(found, texts, strict=True)] == [("a", "25.3"), ("b", "≈ 26")]


@pytest.mark.parametrize(
    ("data", "problems"),
    [
        (b"", ["x.jsonl: the file holds no line"]),
        (b"\n \n\n", ["x.jsonl: the file holds no line"]),
        (codecs.BOM_UTF8, ["x.jsonl: the file holds no line"]),
        (b"\x7fELF\x02\x01\x01\0\0" + bytes(range(256)) * 9, ["x.jsonl: no text file; expected JSON lines in UTF-8"]),
        (ANSWERS.encode("utf-16-le"), ["x.jsonl: no text file; expected JSON lines in UTF-8, or in UTF-16 with a byte order mark"]),
        (b'{"custom_id": "a", "text": "25 \xe9"}\n{"custom_id": "b"', ["x.jsonl, line 1: no UTF-8", "x.jsonl, line 2: expected a JSON"]),
    ],
    ids=["empty", "blank", "only a mark", "binary", "UTF-16 without a mark", "Latin-1, half a line"],
)
def test_files_that_are_no_answers_are_named_in_a_line(tmp_path: Path, data: bytes, problems: list[str]) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    found = [f"{line.where}: {line.problem}" for line in read_batches([tmp_path / "x.jsonl"])]
    assert len(found) == len(problems)
    assert all(line.startswith(problem) for line, problem in zip(found, problems, strict=True))


def body(content: Any, finish: str, tokens: int = 4, **more: Any) -> dict[str, Any]:
    reply = completion(content, finish, {"prompt_tokens": 40, "completion_tokens": tokens})
    reply["choices"][0] |= more
    return reply


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (body("", "error", error={"code": 502, "message": "Upstream \ud83d error"}), "Upstream"),
        (body("", "abort"), "finish_reason 'abort'"),
        (body("", "load"), "finish_reason 'load'"),
        (body(None, "stop", 0), "0 tokens"),
        (body("", "length"), "went on reasoning: raise answer_tokens"),
        (body("", "length", 0), "went on reasoning: raise answer_tokens"),
        ({"error": {"message": "half \ud83d"}}, "half"),
    ],
)
def test_a_line_without_an_answer_is_rejected_with_the_reason(tmp_path: Path, reply: dict[str, Any], reason: str) -> None:
    line = {"custom_id": "a", "response": {"status_code": 200, "body": reply}, "error": None}
    (tmp_path / "x.jsonl").write_text(json.dumps(line))
    [found] = read_batches([tmp_path / "x.jsonl"])
    assert (found.key, found.response) == ("a", "")
    assert reason in f"{found.problem}: {found.detail}"
    assert found.detail.encode() is not None  # Any terminal shows it.


def test_answers_that_are_invalid_or_hold_half_a_character_are_answers(tmp_path: Path) -> None:
    lines = [{"custom_id": "a", "text": "25.3 \ud83d"}, {"custom_id": "b", "text": "", "labels": {}, "position": 1}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = list(read_batches([tmp_path / "x.jsonl"]))
    assert [(line.key, line.problem) for line in found] == [("a", ""), ("b", "")]
    assert found[0].response.encode()
