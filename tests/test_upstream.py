"""Upstream files: only whole ones are ever used, and what is wrong is said with the file's name, line or column."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hat_costs import count_flops

from llmpp_core import upstream
from llmpp_core.jobs import files
from llmpp_core.space.features import HAT_FEATURE_NAMES
from llmpp_core.space.search_space import HAT_WMT

NAME = "llmas/data/train-test_seedarchs/123/wmt14ende/train.jsonl"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data: no LLMPP_DATA_DIR, an empty cache, and no way to the public addresses."""
    monkeypatch.delenv("LLMPP_DATA_DIR", raising=False)
    monkeypatch.setattr(upstream, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(upstream, "_MIRRORS", dict.fromkeys(upstream._MIRRORS, "http://127.0.0.1:9/"))
    return tmp_path


@pytest.fixture
def mirror(nowhere: Path, serve: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a server on this machine that stands for the public addresses."""
    folder = nowhere / "served"
    folder.mkdir()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(upstream, "_MIRRORS", {top: f"{serve(folder)}{top}/" for top in upstream._MIRRORS})
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Stand-in content for NAME, so that these tests need no upstream file."""
    content = b'{"a": 1}\n' * 1000
    entry = {NAME: (hashlib.sha256(content).hexdigest(), len(content))}
    monkeypatch.setattr(upstream, "registry", lambda: entry)
    return content


def put(folder: Path, content: bytes) -> Path:
    path = folder / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- registry -----------------------------------------------------------------------------------------------------


def test_the_registry_lists_every_group() -> None:
    assert {group: len(upstream.names(group)) for group in upstream.GROUPS} == {"tfs": 18, "unlabelled": 6, "latency": 8, "multi30k": 19}
    assert sum(len(upstream.names(group)) for group in upstream.GROUPS) == len(upstream.registry())
    assert upstream.names(NAME) == [NAME]
    with pytest.raises(ValueError, match="unknown data 'tsf'; allowed are tfs, unlabelled, latency, multi30k"):
        upstream.names("tsf")
    with pytest.raises(ValueError, match=r"unknown data 'tfs/nothing\.jsonl'"):
        upstream.fetch("tfs/nothing.jsonl")


def test_the_registry_equals_the_manifest() -> None:
    manifest = Path(os.environ.get("LLMPP_DATA_DIR", "nowhere")) / "MANIFEST.tsv"
    if not manifest.is_file():
        pytest.skip("LLMPP_DATA_DIR has no MANIFEST.tsv")
    with open(manifest, newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file, delimiter="\t")}
    for name, expected in upstream.registry().items():
        top, _, rest = name.partition("/")
        assert (rows[name]["sha256"], int(rows[name]["bytes"]), rows[name]["url"]) == (*expected, upstream._MIRRORS[top] + rest)


# --- where files come from ----------------------------------------------------------------------------------------


def test_the_data_folder_comes_first_and_is_only_read(nowhere: Path, known: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPP_DATA_DIR", str(nowhere / "data"))
    cached = put(nowhere / "cache", known)
    assert upstream.fetch(NAME) == cached
    path = put(nowhere / "data", known)
    assert upstream.fetch(NAME) == path
    assert len(upstream.read_jsonl(path)) == 1000
    assert files_below(nowhere) == [f"cache/{NAME}", f"data/{NAME}"]
    assert path.read_bytes() == known


@pytest.mark.parametrize("where", ["data", "cache"])
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:]])
def test_a_damaged_file_is_set_aside_and_never_used(where: str, damage, nowhere: Path, known: bytes, monkeypatch) -> None:
    path = put(nowhere / where, damage(known))
    monkeypatch.setenv("LLMPP_DATA_DIR", str(nowhere / "data"))
    with pytest.raises(upstream.DamagedFileError, match=r"damaged: sha256 is .* not used, set aside as train.jsonl.damaged") as error:
        upstream.missing([NAME], download=False)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert files_below(nowhere) == [f"{where}/{NAME}.damaged"]
    with pytest.raises(files.SourceError, match="is not here"):
        upstream.fetch(NAME, download=False)


def test_a_damaged_file_in_a_folder_that_cannot_be_written(nowhere: Path, known: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(nowhere / "data", known[:-1])
    monkeypatch.setenv("LLMPP_DATA_DIR", str(nowhere / "data"))

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(files.SourceError, match=r"damaged.*not used, left in place"):
        upstream.fetch(NAME)
    assert path.exists()


def test_an_absent_file_says_how_to_get_it(nowhere: Path, known: bytes) -> None:
    with pytest.raises(files.SourceError, match=f"{NAME} is not here; set LLMPP_DATA_DIR or run: llmpp fetch"):
        upstream.fetch(NAME, download=False)
    with pytest.raises(files.SourceError, match=f"{NAME} could not be downloaded") as error:
        upstream.fetch(NAME)
    assert "\n" not in str(error.value)
    assert files_below(nowhere) == []
    assert upstream.missing([], download=False) is None
    assert (upstream.missing([NAME], download=False) or "").startswith(f"{NAME} is not here")


# --- downloads ----------------------------------------------------------------------------------------------------


def test_a_download_lands_whole_in_the_cache_and_is_kept(mirror: Path, known: bytes, nowhere: Path) -> None:
    served = put(mirror, known)
    path = upstream.fetch(NAME)
    assert path == nowhere / "cache" / NAME
    assert path.read_bytes() == known
    served.unlink()
    assert upstream.fetch(NAME) == path
    assert files_below(nowhere) == [f"cache/{NAME}"]


@pytest.mark.parametrize("fault", ["another checksum", "breaks off", "not there"])
def test_a_download_that_fails_leaves_nothing(mirror: Path, known: bytes, nowhere: Path, monkeypatch: Any, fault: str) -> None:
    def send_half(self: Any) -> None:
        """Announce more bytes than are sent."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(known)))
        self.end_headers()
        self.wfile.write(known[: len(known) // 2])

    if fault == "another checksum":
        put(mirror, known[:-1])
    elif fault == "breaks off":
        monkeypatch.setattr("http.server.SimpleHTTPRequestHandler.do_GET", send_half)
    reason = {"another checksum": ": the download does not have the expected sha256.*discarded", "not there": ".*HTTPError"}.get(fault, "")
    with pytest.raises(files.SourceError, match=NAME + reason):
        upstream.fetch(NAME)
    assert files_below(nowhere / "cache") == []


# --- readers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b'{"a": 1', b"[1]", b"", b"\xff\xfe"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + line + b'\n{"a": 4}\n')
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line 3: expected one JSON object, got") as error:
        upstream.read_jsonl(path)
    assert "\n" not in str(error.value)


LINES = json.dumps(HAT_WMT.largest().to_prompt_lines()[1:])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"b": 1}', "the record has no 'scratch'"),
        ('{"scratch": {}}', "the record has no 'arch_info'"),
        ('{"scratch": 5}', ".*not subscriptable"),
        (f'{{"scratch": {{"arch_info": {LINES}}}}}', ".*missing encoder-embed-dim-subtransformer"),
    ],
)
def test_records_of_another_shape_are_named(tmp_path: Path, record: str, reason: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record + "\n")
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line 1: {reason}"):
        upstream.read_tfs(path)


@pytest.mark.needs_data("tfs")
def test_splits_are_ten_and_twenty_of_the_same_thirty() -> None:
    splits = list(upstream.tfs_splits(download=False))
    assert [(split.task, split.seed) for split in splits] == [(t, s) for t in upstream.TFS_TASKS for s in upstream.TFS_SPLITS]
    assert len({frozenset(split.test["architecture"]) for split in splits}) == 9
    for split in splits:
        demonstrations, test = set(split.demonstrations["architecture"]), set(split.test["architecture"])
        assert (len(demonstrations), len(test)) == (10, 20)
        assert demonstrations.isdisjoint(test)
        records = upstream.tfs_records(split.task, download=False)
        assert all(arch in HAT_WMT for arch in records["architecture"])
        rows = pd.concat([split.demonstrations, split.test]).sort_values(["flops", "bleu"], ignore_index=True)
        pd.testing.assert_frame_equal(rows, records)
    with pytest.raises(ValueError, match="unknown task 'wmt16'; allowed are wmt14ende, wmt14enfr, wmt19ende"):
        upstream.tfs_records("wmt16")


@pytest.mark.needs_data("tfs")
@pytest.mark.parametrize("task", upstream.PAPER_TASKS.values())
def test_the_table_of_tasks_is_that_of_the_records(task: upstream.PaperTask) -> None:
    records = upstream.tfs_records(task.records, download=False)
    for arch, flops, total in records[["architecture", "flops", "flops_total"]].itertuples(index=False):
        assert (count_flops(arch), count_flops(arch, task.subwords)) == (flops, total)


@pytest.mark.needs_data("latency")
@pytest.mark.parametrize("name", upstream.LATENCY_TABLES)
def test_latency_tables(name: str) -> None:
    table = upstream.latency_table(name, download=False)
    assert table.shape == (2000, 15)
    assert tuple(table)[:10] == HAT_FEATURE_NAMES
    assert (table > 0).all(axis=None)


HEADER = ",".join(upstream._HAT_COLUMNS)
ROW = "640,6,3072,8,640,6,3072,8,8,3,10,20,1,2"


def test_a_latency_table_is_read_by_column_name(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    reordered = ",".join(["unused", *HEADER.split(",")[::-1]]) + "\n" + ",".join(["0", *ROW.split(",")[::-1]])
    for text in (f"{HEADER}\n{ROW}", reordered):
        path.write_text(text + "\n")
        row = upstream.read_latency(path).iloc[0]
        assert (row["encoder_embed_dim"], row["decoder_cross_layers_mean"], row["latency_ms"]) == (640, 3, 30)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HEADER.replace("decoder_layer_num,", "") + "\n" + ROW[2:], "column decoder_layer_num is missing; found encoder_embed_dim"),
        (f"{HEADER}\n{ROW}\n{ROW}\n640,6,3072\n", "line 4: expected numbers only"),
        (f"{HEADER}\n{ROW}\n{ROW.replace('3072', 'wide')}\n", "line 3: expected numbers only"),
        (f"{HEADER}\n{ROW}\n{ROW.replace('3072', 'inf')}\n", "line 3: expected numbers only"),
        (f"{HEADER}\n{ROW}\n{ROW},1,2\n", "not a CSV table"),
        (f"{HEADER}\n1,{ROW}\n", "line 2: expected 14 fields"),
        ("", "not a CSV table"),
        ("\xff\xfe\x00", "not a CSV table"),
    ],
)
def test_a_bad_latency_table_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{reason}") as error:
        upstream.read_latency(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown latency table 'abacus'; allowed are"):
        upstream.latency_table("abacus")
