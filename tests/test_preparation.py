"""Corpora larger than memory: what is prepared is the corpus, whatever happened on the way; what does not fit is one line."""

from __future__ import annotations

import gzip
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_on_disk import NAME, SMALL, peak_memory, prepare_small, write_corpus
from small_nets import run_killed

from llmpp_book.__main__ import main
from llmpp_core import upstream as sources
from llmpp_core.jobs.files import SourceError
from llmpp_core.tasks import registry
from llmpp_core.text import corpora
from llmpp_core.text import wmt as preparation
from llmpp_core.text.batches import Pairs
from llmpp_core.text.wmt import load_prepared, prepare, read_manifest


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    for module in (sources, corpora, preparation):
        monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.delenv("LLMPP_DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "out"
    prepare_small(corpus, folder)
    return folder


@pytest.fixture
def mine(prepared: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(prepared, tmp_path / "mine"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The result


def test_every_pair_is_kept_or_counted(prepared: Path, corpus: Path) -> None:
    counts = read_manifest(prepared)["counts"]
    assert counts == {
        "pairs": 100,
        "empty": 2,
        "long": 1,
        "unequal": 1,
        "long_subwords": 1,
        "unequal_subwords": 0,
        "kept": 95,
        "valid": 9,
        "test": 8,
    }
    src, tgt = ((corpus / f"train.{language}").read_text().splitlines() for language in ("en", "de"))
    kept = [i for i in range(100) if i not in (3, 5, 40, 50, 60)]
    _, vocabulary, text, pairs = load_prepared(prepared)
    assert len(vocabulary) <= SMALL.subwords
    assert [len(text[side]) for side in ("valid", "test")] == [9, 8]
    expected = Pairs.from_tokens(*(vocabulary.encode([side[i] for i in kept]) for side in (src, tgt)))
    batch, wanted = pairs.batch(np.arange(95)), expected.batch(np.arange(95))
    assert [a.tolist() for a in batch[:3]] == [a.tolist() for a in wanted[:3]]


def test_shards_are_files_of_the_datasets_library(prepared: Path) -> None:
    import datasets

    shards = sorted(prepared.glob("train-*.arrow"))
    assert len(shards) == 4
    data = datasets.concatenate_datasets([datasets.Dataset.from_file(str(shard)) for shard in shards])
    *_, pairs = load_prepared(prepared)
    assert data.column_names == ["src", "tgt"]
    assert [len(row) + 2 for row in data["tgt"]] == pairs.tgt_lengths.tolist()


def test_the_form_of_the_corpus_does_not_matter(prepared: Path, corpus: Path, tmp_path: Path) -> None:
    """Packed lines, and rows with a column "translation", give the same tokens as lines."""
    packed, rows = tmp_path / "packed", tmp_path / "rows"
    packed.mkdir()
    rows.mkdir()
    for split in ("train", "validation", "test"):
        sides = [(corpus / f"{split}.{language}").read_text().splitlines() for language in ("en", "de")]
        for language, side in zip(("en", "de"), sides, strict=True):
            (packed / f"{split}.{language}.gz").write_bytes(gzip.compress("\n".join(side).encode()))
        lines = [json.dumps({"translation": {"en": a, "de": b}}) for a, b in zip(*sides, strict=True)]
        (rows / f"{split}.jsonl").write_text("\n".join(lines))
    for folder in (packed, rows):
        manifest = prepare(NAME, tmp_path / f"{folder.name}-out", SMALL, corpus=folder)
        assert manifest["counts"] == read_manifest(prepared)["counts"]
        tokens = [load_prepared(place)[-1].batch(np.arange(95)).tgt for place in (tmp_path / f"{folder.name}-out", prepared)]
        assert tokens[0].equal(tokens[1])


def test_several_processes_make_the_same_files(prepared: Path, corpus: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        prepare(NAME, tmp_path / "out", SMALL, corpus=corpus, executor=pool)
    assert files(tmp_path / "out") == files(prepared)


def test_killed_at_random_moments_it_makes_the_same_files(prepared: Path, corpus: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run_killed(prepare_small, (corpus, out), out, kills=6, rng=rng, steps=2)
    assert files(out) == files(prepared)


def test_a_finished_shard_is_not_made_again(mine: Path, corpus: Path) -> None:
    (mine / "manifest.json").unlink()
    (mine / "train-00002.arrow").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in mine.glob("*.arrow")}
    prepare_small(corpus, mine)
    after = {path.name: path.stat().st_mtime_ns for path in mine.glob("*.arrow")}
    assert [name for name, time in after.items() if before.get(name) != time] == ["train-00002.arrow"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("gone", [[0], [1], [0, 2], [1, 2], [3]])
@pytest.mark.parametrize("stage", ["clean", "vocabulary", "tokens", "finished"])
def test_text_that_was_removed_is_made_again(
    prepared: Path, corpus: Path, tmp_path: Path, packed: bool, gone: list[int], stage: str
) -> None:
    """Whichever shards are missing, and wherever the run had stopped."""
    whole = prepared
    if packed:
        corpus = Path(shutil.copytree(corpus, tmp_path / "corpus"))
        for language in ("en", "de"):
            text = corpus / f"train.{language}"
            (corpus / f"{text.name}.gz").write_bytes(gzip.compress(text.read_bytes()))
            text.unlink()
        whole = tmp_path / "whole"
        prepare_small(corpus, whole)
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    # In the order in which they are made.
    later = ["text-00003.arrow", "vocabulary.json", "examples.arrow", "train-0000[123].arrow", "manifest.json"]
    first = {"clean": 0, "vocabulary": 1, "tokens": 3, "finished": 5}[stage]
    removed = [*later[first:], *(["train-00000.arrow"] if stage in ("clean", "vocabulary") else [])]
    for path in [path for pattern in removed for path in out.glob(pattern)] + [out / f"text-{k:05}.arrow" for k in gone]:
        path.unlink(missing_ok=True)
    prepare_small(corpus, out)
    assert files(out) == files(whole)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_corpus(corpus: Path, tmp_path: Path) -> None:
    """Fifteen times the pairs need far less additional memory than the text that is added."""
    peaks, sizes = [], []
    words = ["".join(np.random.default_rng(i).choice(list("abcdefgh"), 60)) for i in range(40)]
    for n in (10_000, 150_000):
        folder = Path(shutil.copytree(corpus, tmp_path / str(n)))
        for language in ("en", "de"):
            rows = np.random.default_rng(0).integers(len(words), size=(n, 5))
            (folder / f"train.{language}").write_text("".join(" ".join(words[i] for i in row) + "\n" for row in rows))
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            settings = replace(SMALL, subwords=3000, shard=5_000, sample=1_000)
            peaks.append(pool.submit(peak_memory, folder, tmp_path / f"out-{n}", settings).result())
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 3


# Bad input


def refused(message: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        prepare(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_a_corpus_without_a_language(corpus: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    (folder / "train.de").unlink()
    refused(r"there is train\.en but no train\.de; a corpus needs both", NAME, tmp_path / "out", SMALL, corpus=folder)
    (folder / "train.en").unlink()
    refused("no train files; expected one per language, or jsonl or parquet", NAME, tmp_path / "out", SMALL, corpus=folder)


def test_unequal_numbers_of_lines(corpus: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    with open(folder / "train.de", "a") as file:
        file.write("one more\n")
    refused(r"train\.en has 100 lines, .*train\.de has 101; every line needs", NAME, tmp_path / "out", SMALL, corpus=folder)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train.en", b"\xff\n" * 100, r"train\.en, line 1: not UTF-8 at byte 1"),
        ("train.de.gz", gzip.compress(b"a\n" * 100)[:-9], r"damaged, or not a gzip file"),
        ("train.de.gz", b"plain", r"damaged, or not a gzip file"),
        ("validation.en", b"\n" * 9, r"valid: the source of pair 1 is empty"),
    ],
    ids=["another encoding", "cut off", "no gzip", "empty lines"],
)
def test_damaged_text(corpus: Path, tmp_path: Path, name: str, data: bytes, message: str) -> None:
    folder = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    (folder / name.removesuffix(".gz")).unlink()
    (folder / name).write_bytes(data)
    refused(message, NAME, tmp_path / "out", SMALL, corpus=folder)


def test_too_little_disk(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    refused(r"the cleaned text need about 0\.00 GiB, and 0\.00 GiB are free", NAME, tmp_path / "out", SMALL, corpus=corpus)
    assert not list((tmp_path / "out").glob("*.arrow"))


def test_other_settings_and_other_files_need_another_folder(mine: Path, corpus: Path, tmp_path: Path) -> None:
    refused(r"was prepared otherwise: subwords is 120 there and 99 here; choose", NAME, mine, replace(SMALL, subwords=99), corpus=corpus)
    refused("otherwise: source is", NAME, mine, SMALL, corpus=write_corpus(tmp_path / "other", 101))
    refused("otherwise: task is wmt14.en-de there and wmt19.en-de here", "wmt19.en-de", mine, SMALL, corpus=corpus)


@pytest.mark.parametrize("stem", ["text-00001.arrow", "train-00001.arrow", "vocabulary.json", "valid.arrow"])
def test_a_changed_byte_is_found_by_the_next_check(mine: Path, corpus: Path, stem: str) -> None:
    data = bytearray((mine / stem).read_bytes())
    data[len(data) * 3 // 4] ^= 1
    (mine / stem).write_bytes(data)
    refused(rf"{stem}: damaged", NAME, mine, SMALL, corpus=corpus)


def test_a_shard_cut_short_is_refused_and_can_be_made_again(mine: Path, prepared: Path, corpus: Path) -> None:
    path = mine / "train-00001.arrow"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"train-00001\.arrow: damaged; remove what is left of it and prepare the corpus again$"):
        load_prepared(mine)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00001\.arrow: missing"):
        load_prepared(mine)
    prepare_small(corpus, mine)
    assert files(mine) == files(prepared)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"files": {"a": 1}}'])
def test_a_damaged_manifest_is_named_and_can_be_made_again(mine: Path, prepared: Path, corpus: Path, data: bytes) -> None:
    (mine / "manifest.json").write_bytes(data)
    message = r"manifest\.json: damaged; remove it and prepare the corpus again$"
    with pytest.raises(ValueError, match=message):
        read_manifest(mine)
    refused(message, NAME, mine, SMALL, corpus=corpus)
    (mine / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json: missing; prepare the corpus again$"):
        read_manifest(mine)
    prepare_small(corpus, mine)
    assert files(mine) == files(prepared)


def test_a_corpus_of_which_the_filters_leave_nothing(corpus: Path, tmp_path: Path) -> None:
    for settings, message in ((replace(SMALL, word_ratio=0.5), "filters$"), (replace(SMALL, longest=1), "filters on subwords$")):
        out = tmp_path / str(settings.longest)
        refused(f"no pair of the corpus passes the {message}", NAME, out, settings, corpus=corpus)
        assert not (out / "manifest.json").exists()


@pytest.mark.parametrize("change", [{"subwords": 0}, {"subwords": 2**16 + 1}, {"ratio": -1.0}, {"shard": 0}])
def test_settings_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SMALL, **change)


# The task


def test_a_task_finds_what_was_prepared(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"wmt14\.en-de is not prepared; `llmpp prepare wmt14\.en-de` does it"):
        registry._FACTORIES[NAME]()
    shutil.copytree(prepared, tmp_path / "data" / "prepared" / NAME)
    monkeypatch.setenv("LLMPP_DATA_DIR", str(tmp_path / "data"))
    task = registry._FACTORIES[NAME]()
    assert (task.name, task.title, len(task.pairs["train"]), len(task.pairs["valid"])) == (NAME, "WMT'14 En-De", 95, 9)
    assert task.bleu(task.vocabulary.encode(list(task.text["test"].tgt)), "test") > 99.9
    with pytest.raises(ValueError, match=r"prepared for wmt14\.en-de, not for wmt19\.en-de"):
        registry.prepared_task("wmt19.en-de", prepared)


# The command


def test_the_command_prints_filters_and_signature(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", NAME, "--out", str(tmp_path / "out"), "--corpus", str(corpus), "--subwords", "120"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "95 of 100 training pairs kept" in output
    assert "1 of more than 250 words" in output
    assert "BLEU signature  nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in output
    assert main(command) == 0
    assert capsys.readouterr().out == output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthetic"], "unknown corpus 'synthetic'; known are wmt14.en-de"),
        ([NAME, "--jobs", "0"], "--jobs: expected a positive number, got 0"),
        ([NAME, "--subwords", "70000"], "subwords: at most 65,536, got 70,000"),
        ([NAME, "--corpus", "nowhere"], "nowhere: no train files"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_spaced_sample_is_spread_over_all_shards(prepared: Path) -> None:
    text = [line for src, _ in preparation._spaced(prepared, 1) for line in src]
    assert len(text) == 96
    for step in (2, 7, 31, 50, 200):
        assert [line for src, _ in preparation._spaced(prepared, step) for line in src] == text[::step]
