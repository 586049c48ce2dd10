"""Parallel text: read whole or refused with file and line; what cleaning leaves out is counted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpp_core import upstream as sources
from llmpp_core.jobs.files import SourceError
from llmpp_core.text import corpora
from llmpp_core.text.corpora import Cleaning, ParallelText, as_parallel, clean, multi30k, read_lines, read_parallel, stream, wmt


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# Files


@pytest.mark.parametrize(
    ("data", "sentences"),
    [
        (b"", []),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\xef\xbb\xbfone\n", ["one"]),
        (b"one\n\n", ["one", ""]),
        ("line\u2028separator\x85and next\x0cpage\n".encode(), ["line\u2028separator\x85and next\x0cpage"]),
    ],
    ids=["empty", "plain", "no newline at the end", "Windows", "byte order mark", "empty line", "other separators"],
)
def test_a_line_is_a_sentence(tmp_path: Path, data: bytes, sentences: list[str]) -> None:
    assert read_lines(write(tmp_path / "text", data)) == sentences
    assert read_lines(write(tmp_path / "text.gz", gzip.compress(data))) == sentences


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "text.de", "schön\n".encode() + "schön\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"text\.de, line 2: not UTF-8 at byte 4$"):
        read_lines(path)


@pytest.mark.parametrize("data", [b"plain text", gzip.compress(b"one\n" * 1000)[:-9], b""], ids=["no gzip", "cut off", "empty"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "text.gz", data)
    if data:
        with pytest.raises(ValueError, match=r"text\.gz: damaged, or not a gzip file"):
            read_lines(path)
    else:
        assert read_lines(path) == []


def test_unequal_line_counts_are_both_named(tmp_path: Path) -> None:
    src, tgt = write(tmp_path / "a.en", b"one\n" * 1200), write(tmp_path / "a.de", b"eins\n" * 1199)
    with pytest.raises(ValueError, match=r"a\.en has 1,200 lines, .*a\.de has 1,199; every line needs its translation$"):
        read_parallel(src, tgt)


@pytest.mark.parametrize("empty", ["a.en", "a.de"])
def test_an_empty_line_is_named(tmp_path: Path, empty: str) -> None:
    for name in ("a.en", "a.de"):
        write(tmp_path / name, b"one\n \t\nthree\n" if name == empty else b"one\ntwo\nthree\n")
    with pytest.raises(ValueError, match=rf"{empty}, line 2: empty; remove the line from both files$"):
        read_parallel(tmp_path / "a.en", tmp_path / "a.de")
    cleaned = read_parallel(tmp_path / "a.en", tmp_path / "a.de", cleaned=True)
    assert (cleaned.src, cleaned.tgt) == (["one", "three"], ["one", "three"])
    assert cleaned.cleaning == Cleaning(3, empty=1, long=0, unequal=0)


# Sequences


@pytest.mark.parametrize(
    ("src", "tgt", "reason"),
    [
        (["a", "b"], ["a"], "here: 2 source and 1 target sentences"),
        (["a", ""], ["a", "b"], "here: the source of pair 2 is empty"),
        (["a", "b"], [" ", "b"], "here: the target of pair 1 is empty"),
        ("ab", ["a", "b"], "here: the source is 'ab'; expected a sequence"),
        (["a", "b"], Path("b.de"), "here: the target is 'b.de'; expected a sequence"),
    ],
)
def test_sentences_that_do_not_fit_are_refused(src: Any, tgt: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_parallel((src, tgt), "here")


def test_text_is_taken_in_three_forms(tmp_path: Path) -> None:
    files = write(tmp_path / "a.en", b"one\n"), str(write(tmp_path / "a.de", b"eins\n"))
    text = as_parallel(files, "name")
    assert as_parallel(text, "other") is text
    assert as_parallel((["one"], ["eins"]), "name") == text == ParallelText(["one"], ["eins"], "name")


def test_shorter_pairs_keep_their_order() -> None:
    text = ParallelText(["a", "a b c", "d", "e", "f"], ["x", "y", "y z w", "v", "u"])
    assert (text.shorter(2).src, text.shorter(2).tgt) == (["a", "e", "f"], ["x", "v", "u"])
    assert text.shorter(2, at_most=2).src == ["a", "e"]


# Cleaning

WORDS = st.lists(st.integers(0, 12), max_size=20)


@given(src=WORDS, tgt=WORDS)
def test_what_is_left_out_is_counted(src: list[int], tgt: list[int]) -> None:
    n = min(len(src), len(tgt))
    lengths = list(zip(src, tgt, strict=False))
    rows, report = clean(*([" ".join("x" * words) for words in side[:n]] for side in (src, tgt)), longest=8, ratio=1.5)
    assert rows == [i for i, (a, b) in enumerate(lengths) if 0 < a <= 8 and 0 < b <= 8 and max(a, b) <= 1.5 * min(a, b)]
    assert (report.pairs, report.kept) == (n, len(rows))
    assert report.empty == sum(0 in pair for pair in lengths)
    assert report.long == sum(0 not in pair and max(pair) > 8 for pair in lengths)


def test_a_report_reads_as_a_sentence() -> None:
    _, report = clean(["a b", None, "w " * 300, "a", "a b"], ["a", "b", "w", "b c d e", ""])  # type: ignore[list-item]
    assert str(report) == "1 of 5 pairs kept; left out: 2 empty, 1 too long, 1 of too unequal length"


def test_a_stream_is_the_sequence() -> None:
    numbers = [str(i) for i in range(25_000)]
    assert list(stream(numbers)) == numbers


# Multi30k


@pytest.mark.needs_data("multi30k")
@pytest.mark.parametrize("target", ["de", "fr", "cs"])
def test_multi30k_is_whole(target: str) -> None:
    assert [len(multi30k(target, side)) for side in corpora.SIDES] == [29_000, 1_014, 1_000]
    test = multi30k(target, "test")
    assert test.src[0] == "A man in an orange hat starring at something."
    assert test.tgt[0].startswith({"de": "Ein Mann", "fr": "Un homme", "cs": "Muž"}[target])


# WMT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of wmt14.en-de's files, empty, on a machine without a network."""

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach it\nwith a second line")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    for module in (sources, corpora):
        monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setenv("LLMPP_DATA_DIR", str(tmp_path))
    (tmp_path / "wmt14.en-de").mkdir()
    return tmp_path / "wmt14.en-de"


def rows(pairs: Sequence[tuple[str | None, str | None]]) -> list[dict[str, Any]]:
    return [{"translation": {"de": de, "en": en}} for en, de in pairs]


def jsonl(pairs: Sequence[tuple[str | None, str | None]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(pairs)).encode()


@pytest.mark.parametrize(("name", "pack"), [("train.jsonl", bytes), ("train.jsonl.gz", gzip.compress)])
def test_wmt_from_lines_is_cleaned_and_stays_on_disk(folder: Path, name: str, pack) -> None:
    pairs = [
        ("Good day", "Guten Tag"),
        ("", "leer"),
        (None, "nichts"),
        ("w " * 251, "w " * 251),
        ("one", "drei Wörter hier"),
        ("It is", "Es ist"),
    ]
    write(folder / name, pack(jsonl(pairs)))
    text = wmt("wmt14.en-de", "train")
    assert (list(text.src), list(text.tgt)) == (["Good day", "It is"], ["Guten Tag", "Es ist"])
    assert text.cleaning == Cleaning(6, empty=2, long=1, unequal=1)
    assert not isinstance(text.src, list)


def test_wmt_from_shards_of_parquet(folder: Path) -> None:
    import datasets

    features = datasets.Features({"translation": datasets.Translation(["de", "en"])})
    for i in range(2):
        shard = datasets.Dataset.from_list(rows([(f"Part {i}", f"Teil {i}")]), features=features)
        shard.to_parquet(folder / f"validation-0000{i}-of-00002.parquet")
    text = wmt("wmt14.en-de", "valid")
    assert (list(text.src), list(text.tgt)) == (["Part 0", "Part 1"], ["Teil 0", "Teil 1"])
    assert text.cleaning is None


def test_wmt_may_lie_in_the_cache(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache" / "wmt14.en-de").mkdir(parents=True)
    write(tmp_path / "cache" / "wmt14.en-de" / "test.jsonl", jsonl([("cached", "da")]))
    assert list(wmt("wmt14.en-de", "test").src) == ["cached"]
    write(folder / "test.jsonl", jsonl([("given", "da")]))
    assert list(wmt("wmt14.en-de", "test").src) == ["given"]


def test_held_out_pairs_are_not_cleaned(folder: Path) -> None:
    write(folder / "test.jsonl", jsonl([("one", "drei Wörter hier"), ("two", "")]))
    with pytest.raises(ValueError, match=r"wmt14\.en-de test: the target of pair 2 is empty"):
        wmt("wmt14.en-de", "test")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"en": "a", "de": "b"}\n', 'wmt14.en-de test: expected a column "translation" with "en" and "de"'),
        (b'{"translation": {"en": "a", "fr": "b"}}\n', 'expected a column "translation" with "en" and "de"'),
        (b'{"translation": "a"}\n', 'expected a column "translation" with "en" and "de"'),
        (jsonl([("a", "b")]) + b"no json\n", "test.jsonl: damaged or of another form: JSON parse error: Invalid value. in row 1"),
    ],
    ids=["no translation", "other language", "no languages", "damaged"],
)
def test_wmt_of_another_form_is_refused(folder: Path, data: bytes, reason: str) -> None:
    write(folder / "test.jsonl", data)
    with pytest.raises(ValueError, match=reason) as error:
        wmt("wmt14.en-de", "test")
    assert "\n" not in str(error.value)


def test_two_kinds_of_file_are_refused(folder: Path) -> None:
    write(folder / "test.jsonl", b"")
    write(folder / "test.parquet", b"")
    with pytest.raises(ValueError, match="both as parquet and as jsonl; keep one"):
        wmt("wmt14.en-de", "test")


def test_wmt_that_is_not_to_be_had_is_one_line(folder: Path) -> None:
    reason = r"wmt14.en-de: no validation files in .*wmt14.en-de or .*wmt14.en-de, and wmt/wmt14 is not to be had \(ConnectionError\)"
    with pytest.raises(SourceError, match=rf"^{reason}$"):
        wmt("wmt14.en-de", "valid")


@pytest.mark.parametrize(
    ("name", "side", "asked"),
    [
        ("wmt14.en-de", "train", ("wmt/wmt14", "de-en", "train")),
        ("wmt14.en-fr", "valid", ("wmt/wmt14", "fr-en", "validation")),
        ("wmt19.en-de", "train", ("wmt/wmt19", "de-en", "train")),
        ("wmt19.en-de", "valid", ("wmt/wmt17", "de-en", "test")),  # newstest2017
        ("wmt19.en-de", "test", ("wmt/wmt19", "de-en", "validation")),  # newstest2018
    ],
)
def test_the_hub_is_asked_for_what_hat_used(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, side: str, asked) -> None:
    import datasets

    def answer(dataset: str, configuration: str, split: str) -> Any:
        assert (dataset, configuration, split) == asked
        return datasets.Dataset.from_list([{"translation": {"en": "a", configuration[:2]: "b"}}])

    monkeypatch.setattr("datasets.load_dataset", answer)
    assert list(wmt(name, side).tgt) == ["b"]
