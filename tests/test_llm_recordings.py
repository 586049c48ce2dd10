"""Recordings and batch files, whole and damaged."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from fake_llm_server import completion, prompt

from llmpp_core.llm import batches
from llmpp_core.llm.batches import read_batches, write_batches
from llmpp_core.llm.cache import Stored
from llmpp_core.llm.recordings import Recording, Row, load, open_recording, read_recording, recording_path, to_json, write_recording
from llmpp_core.llm.run import Job
from llmpp_core.llm.settings import Settings

SETTINGS = Settings("vendor/model:1", temperature=0.0)


def row(i: int, sample: int = 0, text: str = "25") -> Row:
    response = json.dumps(completion(text))
    return Row({"task": f"t{i % 2}", "first": i}, sample, Stored(response, 0.25))


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    path = recording_path(tmp_path, "exp", SETTINGS.model)
    return Recording(path, "exp", SETTINGS, {f"key{i}{s}": row(i, s) for i in (11, 2, 3) for s in (1, 0)})


def test_a_recording_round_trips_and_an_added_answer_is_an_added_line(recording: Recording) -> None:
    write_recording(recording)
    found = read_recording(recording.path)
    assert (found.rows, found.experiment, found.settings.identity()) == (recording.rows, "exp", SETTINGS.identity())
    assert recording.path.name == "vendor-model-1.jsonl"
    before = recording.path.read_text().splitlines()
    labels = [(line["labels"]["task"], line["labels"]["first"], line["sample"]) for line in map(json.loads, before[1:])]
    assert labels == sorted(labels)
    recording.rows = {"new": row(4), **dict(reversed(recording.rows.items()))}
    write_recording(recording)
    after = recording.path.read_text().splitlines()
    assert len(after) == len(before) + 1
    assert [line for line in after if '"new"' not in line] == before
    assert [path.name for path in recording.path.parent.iterdir()] == [recording.path.name]  # No draft is left.


def test_only_answers_of_the_same_settings_are_gathered(recording: Recording, tmp_path: Path) -> None:
    write_recording(recording)
    write_recording(Recording(tmp_path / "exp2" / "m.jsonl", "exp2", SETTINGS, {"extra": row(9)}))
    write_recording(Recording(tmp_path / "exp2" / "n.jsonl", "exp2", Settings("n"), {"foreign": row(9)}))
    assert set(load(tmp_path, SETTINGS)) == {*recording.rows, "extra"}
    assert open_recording(recording.path, "exp", SETTINGS).rows == recording.rows
    assert open_recording(recording.path.with_name("other.jsonl"), "exp", SETTINGS).rows == {}
    with pytest.raises(ValueError, match=r"holds answers of other settings: temperature is 0\.0 there and 1\.0 here; choose another name"):
        open_recording(recording.path, "exp", Settings("vendor/model:1", temperature=1.0))


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (1, "{}", "line 1: expected the head of a recording"),
        (1, '{"recording": {"experiment": "x", "schema": 99, "settings": {}}}', "line 1: schema 99 is not supported"),
        (1, '{"recording": {"experiment": "x", "schema": 1, "settings": {"model": "m"}}}', "line 1: settings of a recording: expected"),
        (3, "{", "line 3: expected one JSON object"),
        (3, "{}", "line 3: not a recorded answer"),
        (3, '{"key": "k", "labels": {}, "sample": 0, "seconds": null, "response": {"error": "x"}}', "line 3: not a recorded answer"),
        (3, None, "line 3: not a recorded answer: the key key20 is given twice"),
    ],
)
def test_damage_is_named_by_file_and_line(recording: Recording, number: int, line: str | None, message: str) -> None:
    write_recording(recording)
    lines = recording.path.read_text().splitlines()
    recording.path.write_text("\n".join([*lines[: number - 1], lines[1] if line is None else line, *lines[number:]]))
    with pytest.raises(ValueError, match=f"vendor-model-1.jsonl, {message}.*; mend the line, or move the file away"):
        read_recording(recording.path)


@pytest.mark.parametrize("ascii_", [True, False])
def test_half_a_character_is_recorded_and_a_failure_of_the_server_is_asked_again(recording: Recording, ascii_: bool) -> None:
    half = completion("25.30 é \ud83d")
    failed = completion("", "error", {"prompt_tokens": 0, "completion_tokens": 0})
    for key, reply in (("half", half), ("failed", failed)):
        recording.rows[key] = Row({"task": "t0", "first": 5}, 0, Stored(json.dumps(reply, ensure_ascii=ascii_), None))
    write_recording(recording)
    with pytest.warns(UserWarning, match="finish_reason 'error'; left out, so that it is asked again"):
        found = read_recording(recording.path).rows
    assert found.keys() == recording.rows.keys() - {"failed"}
    assert json.loads(found["half"].stored.response) == half
    assert found["half"].stored.response.encode()
    assert (to_json({"text": "é😀"}), to_json("é\ud83d").isascii()) == ('{"text": "é😀"}', True)


@pytest.mark.parametrize("data", [b"", b'{"recording": {"experi', bytes(range(256)), b'{"custom_id": "a", "text": "25"}', None])
def test_a_foreign_file_is_named_and_spoils_no_other(recording: Recording, tmp_path: Path, data: bytes | None) -> None:
    write_recording(recording)
    other = recording.path.with_name("a-foreign-one.jsonl")
    other.mkdir() if data is None else other.write_bytes(data)
    with pytest.warns(UserWarning, match=r"^left out: .*a-foreign-one\.jsonl") as caught:
        assert set(load(tmp_path, SETTINGS)) == set(recording.rows)
    assert len(caught) == 1
    assert data is None or "move the file away" in str(caught[0].message)


@pytest.mark.parametrize("damage", ["head", "half a line", "twice"])
def test_a_damaged_recording_of_the_model_that_is_asked_is_refused_since_its_answers_were_paid_for(
    recording: Recording, tmp_path: Path, damage: str
) -> None:
    write_recording(recording)
    text = recording.path.read_text()
    lines = text.splitlines(keepends=True)
    changed = {"head": text[5:], "half a line": text[:-20], "twice": text + lines[2]}[damage]
    recording.path.write_text(changed)
    with pytest.raises(ValueError, match=r"vendor-model-1\.jsonl, line \d+: .*; mend the line, or move the file away"):
        load(tmp_path, SETTINGS)
    with pytest.warns(UserWarning, match="left out: .*vendor-model-1"):
        assert load(tmp_path, Settings("another")) == {}
    assert recording.path.read_text() == changed


@pytest.mark.parametrize(("limit", "most", "files"), [(None, 0, 1), ("BATCH_REQUESTS", 10, 3), ("BATCH_BYTES", 2000, 4)])
def test_batch_files_hold_every_request_once_and_keep_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, most: int, files: int
) -> None:
    jobs = [Job(SETTINGS.key(prompt(i)), prompt(i), 0) for i in range(25)]
    assert write_batches([], SETTINGS, tmp_path, "none") == []
    write_batches(jobs, SETTINGS, tmp_path, "x")
    if limit:
        monkeypatch.setattr(batches, limit, most)
    paths = write_batches(jobs, SETTINGS, tmp_path, "x")
    assert len(paths) >= files if limit == "BATCH_BYTES" else len(paths) == files
    assert all(path.stat().st_size <= batches.BATCH_BYTES for path in paths)
    assert all(len(path.read_text().splitlines()) <= batches.BATCH_REQUESTS for path in paths)
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [job.key for job in jobs]
    assert [line["body"] for line in lines] == [SETTINGS.body(job.prompt) for job in jobs]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    assert sorted(tmp_path.glob("x-*.jsonl")) == paths  # Files of an earlier export are gone.


def answered(reply: dict[str, Any], status: int = 200) -> str:
    return json.dumps({"custom_id": "a", "response": {"status_code": status, "body": reply}, "error": None})


@pytest.mark.parametrize(
    ("line", "key", "problem"),
    [
        (answered(completion("25")), "a", ""),
        ('{"custom_id": "a", "text": "25.3 \\ud83d", "labels": {}, "position": 1}', "a", ""),
        ('{"custom_id": "a", "text": ""}', "a", ""),
        *((answered(completion(*invalid)), "a", "") for invalid in [("25", "length"), (None, "content_filter")]),
        ("{broken", "", "expected a JSON object with a custom_id: got '{broken'"),
        ('{"id": "no id"}', "", "expected a JSON object with a custom_id"),
        ('{"custom_id": 5, "text": "25"}', "", "expected a JSON object with a custom_id"),
        ('{"custom_id": "a", "method": "POST", "body": {}}', "", "a request as it was exported, not an answer"),
        ('{"custom_id": "a", "response": null, "error": {"code": "batch_expired"}}', "a", "no answer: {'code': 'batch_expired'}"),
        (answered({}, 500), "a", "no answer: {'status_code': 500"),
        (answered({"choices": []}), "a", "no answer: the response has no choices"),
        (answered(completion("", "abort")), "a", "no answer: the server gave up: finish_reason 'abort'"),
        (answered(completion("", "length")), "a", "no answer, all tokens allowed went on reasoning: raise answer_tokens"),
    ],
)
def test_a_line_is_an_answer_or_comes_with_its_problem(tmp_path: Path, line: str, key: str, problem: str) -> None:
    (tmp_path / "x.jsonl").write_text(f"\n{line}\n")
    [found] = read_batches([tmp_path / "x.jsonl"])
    assert (found.where, found.key) == ("x.jsonl, line 2", key)
    assert f"{found.problem}: {found.detail}".startswith(problem)
    assert bool(found.response) == (not problem) == (not found.problem)
    assert (found.response + found.detail).encode() is not None  # Any file and any terminal takes it.


ANSWERS = "".join(json.dumps({"custom_id": name, "text": text}, ensure_ascii=False) + "\n" for name, text in (("a", "25.3"), ("b", "≈ 26")))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_answers_are_read_in_the_encodings_that_editors_and_shells_write(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(ANSWERS.strip().replace("\n", end).encode(encoding))
    found = list(read_batches([tmp_path / "x.jsonl"]))
    texts = [json.loads(line.response)["choices"][0]["message"]["content"] for line in found]
    assert [(line.key, text) for line, text in zip(found, texts, strict=True)] == [("a", "25.3"), ("b", "≈ 26")]


@pytest.mark.parametrize(
    ("data", "problems"),
    [
        (b"", ["x.jsonl: the file holds no line"]),
        (codecs.BOM_UTF8 + b"\n", ["x.jsonl: the file holds no line"]),
        (b"\x7fELF\x02\x01\x01\0\0" + bytes(range(256)) * 9, ["x.jsonl: no text file; expected JSON lines in UTF-8"]),
        (b'{"custom_id": "a", "text": "25 \xe9"}\n{"custom_id": "b"', ["x.jsonl, line 1: no UTF-8", "x.jsonl, line 2: expected a JSON"]),
    ],
    ids=["empty", "only a mark", "binary", "Latin-1, half a line"],
)
def test_files_that_are_no_answers_are_named_in_a_line(tmp_path: Path, data: bytes, problems: list[str]) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    found = [f"{line.where}: {line.problem}" for line in read_batches([tmp_path / "x.jsonl"])]
    assert len(found) == len(problems)
    assert all(line.startswith(problem) for line, problem in zip(found, problems, strict=True))
