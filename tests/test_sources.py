"""Upstream files: only whole ones are ever used, and what is wrong is said with the file's name, line or column."""

from __future__ import annotations

import csv
import hashlib
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from llmpp_core import upstream as sources
from llmpp_core.jobs import files
from llmpp_core.space.search_space import HAT_WMT

NAME = "llmas/data/train-test_seedarchs/123/wmt14ende/train.jsonl"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data: no LLMPP_DATA_DIR, an empty cache, and no way to the public addresses."""
    monkeypatch.delenv("LLMPP_DATA_DIR", raising=False)
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(sources, "_MIRRORS", dict.fromkeys(sources._MIRRORS, "http://127.0.0.1:9/"))
    return tmp_path


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a server on this machine that stands for the public addresses."""
    folder = nowhere / "served"
    folder.mkdir()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(sources, "_MIRRORS", {top: f"{address}{top}/" for top in sources._MIRRORS})
        yield folder
        server.shutdown()
        thread.join()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Stand-in content for NAME, so that these tests need no upstream file."""
    content = b'{"a": 1}\n' * 1000
    entry = {NAME: (hashlib.sha256(content).hexdigest(), len(content))}
    monkeypatch.setattr(sources, "registry", lambda: entry)
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
    assert {group: len(sources.names(group)) for group in sources.GROUPS} == {"tfs": 18, "unlabelled": 6, "latency": 8, "multi30k": 19}
    assert sum(len(sources.names(group)) for group in sources.GROUPS) == len(sources.registry())
    assert sources.names(NAME) == [NAME]
    for sha256, size in sources.registry().values():
        assert len(bytes.fromhex(sha256)) == 32
        assert size > 0
    with pytest.raises(ValueError, match="unknown data 'tsf'; allowed are tfs, unlabelled, latency, multi30k"):
        sources.names("tsf")
    with pytest.raises(ValueError, match=r"unknown data 'tfs/nothing\.jsonl'"):
        sources.fetch("tfs/nothing.jsonl")


def test_the_registry_equals_the_manifest() -> None:
    manifest = Path(os.environ.get("LLMPP_DATA_DIR", "nowhere")) / "MANIFEST.tsv"
    if not manifest.is_file():
        pytest.skip("LLMPP_DATA_DIR has no MANIFEST.tsv")
    with open(manifest, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    registry = sources.registry()
    assert registry == {row["path"]: (row["sha256"], int(row["bytes"])) for row in rows if row["path"] in registry}
    for row in rows:
        if row["path"] in registry:
            top, _, rest = row["path"].partition("/")
            assert row["url"] == sources._MIRRORS[top] + rest


# --- where files come from ----------------------------------------------------------------------------------------


def test_a_whole_file_of_the_data_folder_is_used_where_it_lies(nowhere: Path, known: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(nowhere / "data", known)
    monkeypatch.setenv("LLMPP_DATA_DIR", str(nowhere / "data"))
    assert sources.fetch(NAME) == path
    assert files_below(nowhere) == [f"data/{NAME}"]


@pytest.mark.parametrize("where", ["data", "cache"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:]])
def test_a_damaged_file_is_set_aside_and_never_used(where: str, damage, nowhere: Path, known: bytes, monkeypatch) -> None:
    path = put(nowhere / where, damage(known))
    monkeypatch.setenv("LLMPP_DATA_DIR", str(nowhere / "data"))
    with pytest.raises(files.SourceError, match=r"damaged: sha256 is .* not used, set aside as train.jsonl.damaged") as error:
        sources.fetch(NAME, download=False)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert files_below(nowhere) == [f"{where}/{NAME}.damaged"]
    with pytest.raises(files.SourceError, match="is not here"):
        sources.fetch(NAME, download=False)


@pytest.mark.needs_data("tfs")
def test_one_flipped_byte_of_a_real_file_is_found(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    content = bytearray(sources.fetch(NAME, download=False).read_bytes())
    content[len(content) // 2] ^= 1
    path = put(nowhere / "data", bytes(content))
    monkeypatch.setenv("LLMPP_DATA_DIR", str(nowhere / "data"))
    with pytest.raises(sources.DamagedFileError, match="damaged") as error:
        sources.missing([NAME], download=False)
    assert str(path) in str(error.value)


def test_a_damaged_file_in_a_folder_that_cannot_be_written(nowhere: Path, known: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(nowhere / "data", known[:-1])
    monkeypatch.setenv("LLMPP_DATA_DIR", str(nowhere / "data"))

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(files.SourceError, match=r"damaged.*not used, left in place"):
        sources.fetch(NAME)
    assert path.exists()


def test_an_absent_file_says_how_to_get_it(nowhere: Path, known: bytes) -> None:
    with pytest.raises(files.SourceError, match=f"{NAME} is not here; set LLMPP_DATA_DIR or run: llmpp fetch"):
        sources.fetch(NAME, download=False)
    with pytest.raises(files.SourceError, match=f"{NAME} could not be downloaded") as error:
        sources.fetch(NAME)
    assert "\n" not in str(error.value)
    assert files_below(nowhere) == []


def test_missing_names_the_first_reason_or_none(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.missing([], download=False) is None
    reason = sources.missing(["latency"], download=False)
    assert reason is not None
    assert reason.startswith(sources.names("latency")[0])


# --- downloads ----------------------------------------------------------------------------------------------------


def test_a_download_lands_whole_in_the_cache_and_is_kept(mirror: Path, known: bytes, nowhere: Path) -> None:
    served = put(mirror, known)
    path = sources.fetch(NAME)
    assert path == nowhere / "cache" / NAME
    assert path.read_bytes() == known
    served.unlink()
    assert sources.fetch(NAME) == path
    assert files_below(nowhere) == [f"cache/{NAME}"]


def test_a_download_with_another_checksum_is_discarded(mirror: Path, known: bytes, nowhere: Path) -> None:
    put(mirror, known[:-1])
    with pytest.raises(files.SourceError, match=f"{NAME}: the download does not have the expected sha256.*discarded"):
        sources.fetch(NAME)
    assert files_below(nowhere / "cache") == []


def test_a_download_that_breaks_off_leaves_nothing(mirror: Path, known: bytes, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server announces more bytes than it sends; no part of the file may appear under its name."""

    def send_half(self: QuietHandler) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(known)))
        self.end_headers()
        self.wfile.write(known[: len(known) // 2])

    monkeypatch.setattr(QuietHandler, "do_GET", send_half)
    with pytest.raises(files.SourceError, match=NAME):
        sources.fetch(NAME)
    assert files_below(nowhere / "cache") == []


def test_a_file_that_the_server_lacks_is_named(mirror: Path, known: bytes, nowhere: Path) -> None:
    with pytest.raises(files.SourceError, match=f"{NAME} could not be downloaded \\(HTTPError\\)"):
        sources.fetch(NAME)
    assert files_below(nowhere) == []


# --- readers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b'{"a": 1', b"[1]", b"null", b"", b"\xff\xfe", b'{"a": "\xe9"}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + line + b'\n{"a": 4}\n')
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line 3: expected one JSON object, got") as error:
        sources.read_jsonl(path)
    assert "\n" not in str(error.value)


def test_records_of_another_shape_are_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    lines = HAT_WMT.largest().to_prompt_lines()
    cases = {
        '{"b": 1}': "line 1: the record has no 'scratch'",
        '{"scratch": {}}': "line 1: the record has no 'arch_info'",
        '{"scratch": 5}': "line 1: .*not subscriptable",
        f'{{"scratch": {{"arch_info": {str(lines[1:]).replace(chr(39), chr(34))}}}}}': "line 1: .*missing encoder-embed-dim-subtransformer",
    }
    for text, reason in cases.items():
        path.write_text(text + "\n")
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}, {reason}") as error:
            sources.read_tfs(path)
        assert "\n" not in str(error.value)


@pytest.mark.needs_data("tfs")
def test_a_truncated_record_file_names_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(sources.fetch(NAME, download=False).read_bytes()[:-200])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line 10: expected one JSON object"):
        sources.read_tfs(path)


@pytest.mark.needs_data("tfs")
def test_splits_are_ten_and_twenty_of_the_same_thirty() -> None:
    splits = list(sources.tfs_splits(download=False))
    assert [(split.task, split.seed) for split in splits] == [(t, s) for t in sources.TFS_TASKS for s in sources.TFS_SPLITS]
    for split in splits:
        demonstrations, test = set(split.demonstrations["architecture"]), set(split.test["architecture"])
        assert (len(demonstrations), len(test)) == (10, 20)
        assert demonstrations.isdisjoint(test)
        records = sources.tfs_records(split.task, download=False)
        assert demonstrations | test == set(records["architecture"])
        assert all(arch in HAT_WMT for arch in records["architecture"])
        rows = pd.concat([split.demonstrations, split.test]).sort_values(["flops", "bleu"], ignore_index=True)
        pd.testing.assert_frame_equal(rows, records)
    with pytest.raises(ValueError, match="unknown task 'wmt16'; allowed are wmt14ende, wmt14enfr, wmt19ende"):
        sources.tfs_records("wmt16")


@pytest.mark.needs_data("unlabelled")
def test_three_thousand_unlabelled_architectures() -> None:
    archs = sources.unlabelled(download=False)
    assert len(archs) == 3000
    assert all(arch in HAT_WMT for arch in archs)


@pytest.mark.needs_data("latency")
@pytest.mark.parametrize("name", sources.LATENCY_TABLES)
def test_latency_tables(name: str) -> None:
    table = sources.latency_table(name, download=False)
    assert table.shape[1] == 15
    assert len(table) == 2000
    assert (table > 0).all(axis=None)
    assert (table["latency_ms"] == table["encoder_ms"] + table["decoder_ms"]).all()


HEADER = ",".join([*sources._HAT_COLUMNS, *sources._HAT_TIMES])
ROW = "640,6,3072,8,640,6,3072,8,8,3,10,20,1,2"


def test_a_latency_table_is_read_by_column_name(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    reordered = ",".join(["unused", *HEADER.split(",")[::-1]]) + "\n" + ",".join(["0", *ROW.split(",")[::-1]])
    for text in (f"{HEADER}\n{ROW}", reordered):
        path.write_text(text + "\n")
        row = sources.read_latency(path).iloc[0]
        assert row["encoder_embed_dim"] == 640
        assert row["decoder_cross_layers_mean"] == 3
        assert row["latency_ms"] == 30


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
        (b"\xff\xfe\x00", "not a CSV table"),
    ],
)
def test_a_bad_latency_table_is_refused(tmp_path: Path, text: str | bytes, reason: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{reason}") as error:
        sources.read_latency(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown latency table 'abacus'; allowed are"):
        sources.latency_table("abacus")


def test_reading_changes_nothing(nowhere: Path, known: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(nowhere / "data", known)
    monkeypatch.setenv("LLMPP_DATA_DIR", str(nowhere / "data"))
    copy = shutil.copy(path, nowhere / "copy")
    assert len(sources.read_jsonl(sources.fetch(NAME))) == 1000
    assert path.read_bytes() == Path(copy).read_bytes()
