"""Recordings, whole and damaged.

Kinds of fault: one bad file that spoils the use of others (siblings: `load`, `read_recordings`, `experiments.recordings`, the import and
every command over them); half a character, which no file takes (siblings: recordings, exported requests, imported answers, texts of
answers, error messages of servers).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_llm_server import completion

from llmpp_core.llm.cache import Stored
from llmpp_core.llm.recordings import (
    Recording,
    Row,
    load,
    open_recording,
    read_recording,
    read_recordings,
    recording_path,
    to_json,
    write_recording,
)
from llmpp_core.llm.settings import Settings

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


HALF = "25.30 \ud83d"


@pytest.mark.parametrize("raw", [json.dumps(completion(HALF)), json.dumps(completion(HALF), ensure_ascii=False)], ids=["escaped", "raw"])
def test_half_a_character_is_recorded_and_comes_back(recording: Recording, raw: str) -> None:
    recording.rows["half"] = Row({"task": "t0", "first": 5}, 0, Stored(raw, None))
    write_recording(recording)
    assert json.loads(read_recording(recording.path).rows["half"].stored.response) == completion(HALF)
    assert read_recording(recording.path).rows["half"].stored.response.encode()


def test_other_characters_are_written_as_they_read() -> None:
    assert to_json({"text": "é😀"}) == '{"text": "é😀"}'
    assert to_json("é\ud83d").isascii()


def foreign(kind: str) -> bytes:
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    return {
        "empty": b"",
        "half a line": b'{"recording": {"experi',
        "requests": json.dumps(request).encode(),
        "binary": bytes(range(256)),
        "answers": b'{"custom_id": "a", "text": "25"}\n',
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "half a line", "requests", "binary", "answers", "folder"])
def test_a_foreign_file_is_named_and_spoils_no_other(recording: Recording, tmp_path: Path, kind: str) -> None:
    write_recording(recording)
    other = recording.path.with_name("a-foreign-one.jsonl")
    if kind == "folder":
        other.mkdir()
    else:
        other.write_bytes(foreign(kind))
    with pytest.warns(UserWarning, match=r"^left out: .*a-foreign-one\.jsonl") as caught:
        assert set(load(tmp_path, SETTINGS)) == set(recording.rows)
    assert len(caught) == 1
    assert kind == "folder" or "move the file away" in str(caught[0].message)
    with pytest.warns(UserWarning, match="a-foreign-one"):
        assert [found.rows for found in read_recordings(tmp_path.glob("*/*.jsonl"))] == [recording.rows]


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


def test_a_recorded_failure_of_the_server_is_asked_again(recording: Recording) -> None:
    failed = completion("", "error", {"prompt_tokens": 0, "completion_tokens": 0})
    recording.rows["failed"] = Row({"task": "t0", "first": 5}, 0, Stored(json.dumps(failed), None))
    write_recording(recording)
    with pytest.warns(UserWarning, match="finish_reason 'error'; left out, so that it is asked again"):
        found = read_recording(recording.path)
    assert found.rows.keys() == recording.rows.keys() - {"failed"}
