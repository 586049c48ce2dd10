"""Files are whole or not there, rows survive a crash in the middle of a line, and damage has a name."""

from __future__ import annotations

import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from llmpp_core.jobs.files import append_rows, load_tensors, need_writable, read_rows, replace_file, save_tensors, to_json

# --- whole files ------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    replace_file(path, b"first")
    replace_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_a_crash_in_the_middle_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_whether_a_place_can_be_written_is_found_out_before_and_leaves_nothing(tmp_path: Path) -> None:
    need_writable(tmp_path / "a" / "b" / "rows.jsonl")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "file" / "rows.jsonl", "its folder is a file"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=f"{path}: cannot be written: {reason}"):
            need_writable(path)


# --- tensors ----------------------------------------------------------------------------------------------------------

TENSORS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "number": np.array(3, dtype=np.int64),
    "none": np.zeros((0, 4), dtype=np.float16),
}
RECORD = {"name": "ä\n", "numbers": [1, 2.5, None, True], "nested": {"b": 1, "a": {}}}


def test_tensors_and_record_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_tensors(path, "test", TENSORS, RECORD)
    found, record = load_tensors(path, "test")
    assert record == RECORD
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array)
    before = path.read_bytes()
    save_tensors(path, "test", dict(reversed(TENSORS.items())), {**RECORD, "numbers": [np.int64(1), np.float64(2.5), None, True]})
    assert path.read_bytes() == before


def test_every_flipped_bit_is_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "file"
    save_tensors(path, "test", TENSORS, RECORD)
    whole = path.read_bytes()
    for bit in rng.choice(8 * len(whole), size=60, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"file: (damaged|not a checkpoint of kind 'test')") as caught:
            load_tensors(path, "test")
        assert "\n" not in str(caught.value)


def test_files_that_are_cut_off_or_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_tensors(path, "test", TENSORS, RECORD)
    whole = path.read_bytes()
    for content in (b"", b"{}", whole[:7], whole[:40], whole[: len(whole) // 2], whole[:-1], whole + b"x"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file: damaged, or not a safetensors file"):
            load_tensors(path, "test")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="file: not a checkpoint of kind 'other'"):
        load_tensors(path, "other")
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="file: not a checkpoint of kind 'test'"):
        load_tensors(path, "test")
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "none", "test")
    with pytest.raises(ValueError, match="a folder, not a safetensors file"):
        load_tensors(tmp_path, "test")


# --- rows -------------------------------------------------------------------------------------------------------------


def lines_of(data: bytes) -> list[tuple[bytes, int]]:
    lines = data.split(b"\n")[:-1]
    return [(line, sum(len(other) + 1 for other in lines[:i])) for i, line in enumerate(lines)]


def test_rows_of_a_full_disk_are_added_by_hand_as_the_error_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    path, rows = tmp_path / "rows.jsonl", [{"a": i} for i in range(4)]
    append_rows(path, rows[:1])
    before, limit = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    # Enough for the second file, and for a row and a half more in the first.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limit[1]))
    try:
        with pytest.raises(OSError, match=r"rows\.jsonl: cannot be written: File too large; .*: append it to the table"):
            append_rows(path, rows[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    spare = tmp_path / "spare" / f"llmpp-{os.getuid()}" / "rows.jsonl"
    path.write_bytes(before + spare.read_bytes())
    assert read_rows(path) == rows


@settings(max_examples=30)
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=8)), max_size=4), cut=st.integers(0, 200))
def test_a_crash_while_writing_loses_the_row_under_way_alone(rows: list[dict], cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    append_rows(path, rows)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    # A row that lacks nothing but the end of its line is whole.
    kept = sum(len(line) <= max(0, cut - start) for line, start in lines_of(whole))
    assert read_rows(path) == rows[:kept]
    append_rows(path, [{"new": 1}])
    assert read_rows(path) == [*rows[:kept], {"new": 1}]
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line != "{}")


@pytest.mark.parametrize("line", ['{"a": 1', "[1]", "", "text", '{"a": 1} {"a": 2}', "\xff", pytest.param("[" * 100_000, id="deep")])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line.encode("latin-1") + b'\n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not a JSON object"):
        read_rows(path)


# --- lines that are JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (np.nan, None),
        (-np.inf, -np.inf),
        ([np.inf, 1.0, float("nan")], [np.inf, 1.0, None]),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1.0, np.nan]), [1.0, None]),
        ('"NaN, Infinity\\"', '"NaN, Infinity\\"'),
        ({"NaN": 1}, {"NaN": 1}),
    ],
)
def test_a_line_is_json_whatever_is_in_it(value: Any, read: Any) -> None:
    found = json.loads(to_json({"x": value, "y": "Infinity"}), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found == {"x": read, "y": "Infinity"}
