from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_llm_server import completion, prompt

from llmpp_core.llm_cache import Stored
from llmpp_core.llm_recordings import (
    Recording,
    Row,
    load,
    open_recording,
    read_batches,
    read_recording,
    recording_path,
    write_batches,
    write_recording,
)
from llmpp_core.llm_run import Job
from llmpp_core.llm_settings import Settings

SETTINGS = Settings("vendor/model:1", temperature=0.0)


def row(i: int, sample: int = 0, text: str = "25") -> Row:
    response = json.dumps(completion(text))
    return Row({"task": f"t{i % 2}", "first": i}, sample, Stored(response, 0.25))


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    path = recording_path(tmp_path, "exp", SETTINGS.model)
    return Recording(path, "exp", SETTINGS, {f"key{i}{s}": row(i, s) for i in (11, 2, 3) for s in (1, 0)})


def test_a_recording_round_trips(recording: Recording) -> None:
    write_recording(recording)
    found = read_recording(recording.path)
    assert found.rows == recording.rows
    assert found.experiment == "exp"
    assert found.settings.identity() == SETTINGS.identity()
    assert recording.path.name == "vendor-model-1.jsonl"


def test_lines_are_sorted_so_that_an_added_answer_is_an_added_line(recording: Recording) -> None:
    write_recording(recording)
    before = recording.path.read_text().splitlines()
    labels = [(line["labels"]["task"], line["labels"]["first"], line["sample"]) for line in map(json.loads, before[1:])]
    assert labels == sorted(labels)
    recording.rows = {"new": row(4), **dict(reversed(recording.rows.items()))}
    write_recording(recording)
    after = recording.path.read_text().splitlines()
    assert len(after) == len(before) + 1
    assert [line for line in after if '"new"' not in line] == before
    assert [path.name for path in recording.path.parent.iterdir()] == [recording.path.name]  # No draft is left.


def test_answers_of_other_settings_are_not_mixed_in(recording: Recording) -> None:
    write_recording(recording)
    assert open_recording(recording.path, "exp", SETTINGS).rows == recording.rows
    with pytest.raises(ValueError, match=r"holds answers of other settings.*choose another name"):
        open_recording(recording.path, "exp", Settings("vendor/model:1", temperature=1.0))
    assert open_recording(recording.path.with_name("other.jsonl"), "exp", SETTINGS).rows == {}


def test_loading_gathers_all_recordings_of_the_same_settings(recording: Recording, tmp_path: Path) -> None:
    write_recording(recording)
    write_recording(Recording(tmp_path / "exp2" / "m.jsonl", "exp2", SETTINGS, {"extra": row(9)}))
    write_recording(Recording(tmp_path / "exp2" / "n.jsonl", "exp2", Settings("n"), {"foreign": row(9)}))
    assert set(load(tmp_path, SETTINGS)) == {*recording.rows, "extra"}


@pytest.mark.parametrize(
    ("number", "line", "message"),
    [
        (1, "{}", "line 1: expected the head of a recording"),
        (1, '{"recording": {"experiment": "x", "schema": 99, "settings": {}}}', "line 1: schema 99 is not supported"),
        (1, '{"recording": {"experiment": "x", "schema": 1, "settings": {"model": "m"}}}', "line 1: settings of a recording: expected"),
        (3, "{", "line 3: expected one JSON object"),
        (3, "{}", "line 3: not a recorded answer"),
        (3, '{"key": "k", "labels": {}, "sample": 0, "seconds": null, "response": {"error": "x"}}', "line 3: not a recorded answer"),
    ],
)
def test_damage_is_named_by_file_and_line(recording: Recording, number: int, line: str, message: str) -> None:
    write_recording(recording)
    lines = recording.path.read_text().splitlines()
    recording.path.write_text("\n".join([*lines[: number - 1], line, *lines[number:]]))
    with pytest.raises(ValueError, match=f"vendor-model-1.jsonl, {message}"):
        read_recording(recording.path)


def test_a_key_given_twice_is_named(recording: Recording) -> None:
    write_recording(recording)
    lines = recording.path.read_text().splitlines()
    recording.path.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(ValueError, match="line 8: the key key20 is given twice"):
        read_recording(recording.path)


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
    assert "batch_expired" in found[4].problem
    assert all(bool(line.problem) != bool(line.response) for line in found)
