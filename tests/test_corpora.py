"""Parallel text: read whole or refused with file and line."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmpp_core import upstream
from llmpp_core.jobs.files import SourceError
from llmpp_core.text import corpora
from llmpp_core.text.corpora import ParallelText, as_parallel, find_wmt, multi30k, read_lines, read_wmt

NAME = "wmt14.en-de"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "sentences"),
    [
        (b"", []),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo", ["one", "two"]),
        (b"\xef\xbb\xbfone\n\n", ["one", ""]),
        ("line\u2028separator\x85and\rnext\x0cpage\n".encode(), ["line\u2028separator\x85and\rnext\x0cpage"]),
    ],
    ids=["empty", "plain", "Windows, no newline at the end", "byte order mark, empty line", "other separators"],
)
def test_a_line_is_a_sentence(tmp_path: Path, data: bytes, sentences: list[str]) -> None:
    assert list(read_lines(write(tmp_path / "text", data))) == sentences
    assert list(read_lines(write(tmp_path / "text.gz", gzip.compress(data)))) == sentences


GOOD = b"one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("names", "data", "message"),
    [
        (("a.en", "a.de"), (b"one\n" * 1200, b"eins\n" * 1199), r"a\.en has 1,200 lines, .*a\.de has 1,199; every line needs its"),
        (("a.en", "a.de"), (b"one\n", b"eins\nzwei\ndrei\n"), r"a\.en has 1 lines, .*a\.de has 3; every line needs its translation$"),
        (("a.en", "a.de"), (b"one\n \t\nthree\n", GOOD), r"a\.en, line 2: empty; remove the line from both files$"),
        (("a.en", "a.de"), (GOOD, b"one\n\nthree\n"), r"a\.de, line 2: empty; remove the line from both files$"),
        (("a.en", "a.de"), (GOOD, "ö\nschön\n".encode("latin-1")), r"a\.de, line 1: not UTF-8 at byte 1$"),
        (("a.en", "a.de.gz"), (GOOD, b"plain text"), r"a\.de\.gz: damaged, or not a gzip file"),
        (("a.en", "a.de.gz"), (GOOD, gzip.compress(b"one\n" * 1000, mtime=0)[:-9]), r"a\.de\.gz: damaged, or not a gzip file"),
    ],
)
def test_files_that_are_damaged_or_do_not_fit_are_named(tmp_path: Path, names: Any, data: Any, message: str) -> None:
    files = tuple(write(tmp_path / name, content) for name, content in zip(names, data, strict=True))
    with pytest.raises(ValueError, match=message):
        as_parallel(files, "name")


@pytest.mark.parametrize(
    ("src", "tgt", "reason"),
    [
        (["a", "b"], ["a"], "here: 2 source and 1 target sentences"),
        (["a", ""], ["a", "b"], "here: the source of pair 2 is empty"),
        (["a", "b"], [" ", "b"], "here: the target of pair 1 is empty"),
        ("ab", ["a", "b"], "here: the source is 'ab'; expected a sequence"),
        (["a", "b"], Path("b.de"), "here: the target is 'b.de'; expected a sequence"),
        (["a", float("nan")], ["x", "y"], "here: the source of pair 2 is no text, but nan"),
    ],
)
def test_sentences_that_do_not_fit_are_refused(src: Any, tgt: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_parallel((src, tgt), "here")


@pytest.mark.parametrize("text", ["a.en", Path("a.en"), (["a"],), (["a"], ["b"], ["c"]), {"en": ["a"], "de": ["b"]}])
def test_what_is_no_pair_of_sides_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="here: expected source and target, two files or two sequences of sentences, got"):
        as_parallel(text, "here")


def test_text_is_taken_in_three_forms(tmp_path: Path) -> None:
    text = as_parallel((write(tmp_path / "a.en", b"one\n"), str(write(tmp_path / "a.de", b"eins\n"))), "name")
    assert as_parallel(text, "other") is text
    assert as_parallel((["one"], iter(["eins"])), "name") == text == ParallelText(["one"], ["eins"], "name")


def test_shorter_pairs_keep_their_order() -> None:
    text = ParallelText(["a", "a b c", "d", "e", "f"], ["x", "y", "y z w", "v", "u"])
    assert (text.shorter(2).src, text.shorter(2).tgt) == (["a", "e", "f"], ["x", "v", "u"])
    assert text.shorter(2, at_most=2).src == ["a", "e"]


@pytest.mark.needs_data("multi30k")
@pytest.mark.parametrize("target", ["de", "fr", "cs"])
def test_multi30k_is_whole(target: str) -> None:
    assert [len(multi30k(target, side)) for side in corpora.SIDES] == [29_000, 1_014, 1_000]
    test = multi30k(target, "test")
    assert test.src[0] == "A man in an orange hat starring at something."
    assert test.tgt[0].startswith({"de": "Ein Mann", "fr": "Un homme", "cs": "Muž"}[target])


# --- WMT ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of wmt14.en-de's files, empty, with a name that is also a pattern, on a machine without a network."""

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach it\nwith a second line")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr(upstream, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setenv("LLMPP_DATA_DIR", str(tmp_path / "data [1]"))
    for place in (tmp_path / "data [1]", tmp_path / "cache"):
        (place / NAME).mkdir(parents=True)
    return tmp_path / "data [1]" / NAME


def rows(*pairs: tuple[str | None, str | None]) -> list[dict[str, Any]]:
    return [{"translation": {"de": de, "en": en}} for en, de in pairs]


def jsonl(*pairs: tuple[str | None, str | None]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(*pairs)).encode()


def read(folder: Path, side: str, name: str = NAME, at_once: int = 2) -> list[tuple[list[str], list[str]]]:
    return list(read_wmt(name, side, find_wmt(name, side), at_once, folder / "rows"))


def to_lines(folder: Path, pairs: Sequence[tuple[str, str]], pack: Callable[[bytes], bytes], end: str) -> None:
    for i, language in enumerate(("en", "de")):
        write(folder / f"train.{language}{end}", pack("".join(f"{pair[i]}\n" for pair in pairs).encode()))


def to_parquet(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    import datasets

    features = datasets.Features({"translation": datasets.Translation(["de", "en"])})
    for i, pair in enumerate(pairs):
        shard = datasets.Dataset.from_list(rows(pair), features=features)
        shard.to_parquet(folder / f"train-0000{i}-of-0000{len(pairs)}.parquet")


@pytest.mark.parametrize(
    "make",
    [
        lambda folder, pairs: to_lines(folder, pairs, bytes, ""),
        lambda folder, pairs: to_lines(folder, pairs, gzip.compress, ".gz"),
        lambda folder, pairs: write(folder / "train.jsonl", jsonl(*pairs)),
        lambda folder, pairs: write(folder / "train.jsonl.gz", gzip.compress(jsonl(*pairs))),
        to_parquet,
    ],
    ids=["lines", "packed lines", "jsonl", "packed jsonl", "shards of parquet"],
)
def test_the_form_of_a_corpus_does_not_matter(folder: Path, make: Callable[..., None]) -> None:
    make(folder, [("Good day", "Guten Tag"), ("", "leer"), ("It is", "Es\rist")])
    assert read(folder, "train") == [(["Good day", ""], ["Guten Tag", "leer"]), (["It is"], ["Es\rist"])]


def test_files_may_lie_in_the_cache_and_a_sentence_may_be_null(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "cache" / NAME / "test.jsonl", jsonl(("cached", None), ("x", "y")))
    assert read(folder, "test") == [(["cached", "x"], ["", "y"])]
    write(folder / "test.jsonl", jsonl(("given", "da")))
    assert read(folder, "test") == [(["given"], ["da"])]


FORM = 'expected a column "translation" with "en" and "de"'


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"test.jsonl": b'{"en": "a", "de": "b"}\n'}, f"{NAME} test: {FORM}"),
        ({"test.jsonl": b'{"translation": {"en": "a", "fr": "b"}}\n'}, FORM),
        ({"test.jsonl": b'{"translation": "a"}\n'}, FORM),
        ({"test.jsonl": jsonl(("a", "b")) + b"no json\n"}, "test.jsonl: damaged or of another form: JSON parse error"),
        ({"test.jsonl": b""}, "test.jsonl: damaged or of another form: nothing in it"),
        ({"test.jsonl": b"\n"}, "test.jsonl: damaged or of another form: "),
        ({"test.jsonl.gz": b"plain text"}, "test.jsonl.gz: damaged or of another form: Not a gzipped file"),
        ({"test.parquet": b"plain text"}, "test.parquet: damaged or of another form: Parquet"),
        ({"test.jsonl": jsonl(("a", "?")).replace(b"?", b"\xf6")}, "test.jsonl: damaged or of another form: 'utf-8' codec"),
        ({"test.jsonl": b"", "test.parquet": b""}, "both as parquet and as jsonl; keep one"),
        ({"test.en": b"a\n", "test.en.gz": b"", "test.de": b"b\n"}, "test is there both packed and not; keep one"),
        ({"test.en": b"a\n"}, "there is test.en but no test.de; a corpus needs both languages"),
    ],
)
def test_files_of_another_form_are_refused_in_one_line(folder: Path, files: dict[str, bytes], reason: str) -> None:
    for name, data in files.items():
        write(folder / name, data)
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        read(folder, "test")
    assert "\n" not in str(error.value)


def test_a_corpus_that_is_not_to_be_had_is_one_line(folder: Path) -> None:
    reason = r"wmt14.en-de: no validation files in .*wmt14.en-de or .*wmt14.en-de, and wmt/wmt14 is not to be had \(ConnectionError\)"
    with pytest.raises(SourceError, match=rf"^{reason}$"):
        read(folder, "valid")
    with pytest.raises(ValueError, match="no validation files; expected one per language, or jsonl or parquet"):
        find_wmt(NAME, "valid", folder)


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
def test_the_hub_is_asked_for_what_hat_used(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, side: str, asked: Any) -> None:
    import datasets

    def answer(dataset: str, configuration: str, split: str) -> Any:
        assert (dataset, configuration, split) == asked
        return datasets.Dataset.from_list([{"translation": {"en": "a", configuration[:2]: "b"}}])

    monkeypatch.setattr("datasets.load_dataset", answer)
    assert read(folder, side, name) == [(["a"], ["b"])]
