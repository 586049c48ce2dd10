"""Corpora larger than memory: what is prepared is the corpus, whatever happened on the way; what does not fit is one line."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from corpora_on_disk import NAME, SMALL, prepare_small, write_corpus
from hypothesis import given
from hypothesis import strategies as st
from small_nets import run_killed

from llmpp_book.__main__ import main
from llmpp_core import upstream
from llmpp_core.jobs.files import SourceError
from llmpp_core.space.search_space import HAT_WMT
from llmpp_core.tasks import registry
from llmpp_core.text import wmt
from llmpp_core.text.batches import Pairs
from llmpp_core.text.wmt import clean, load_prepared, prepare, read_manifest
from llmpp_core.upstream import PAPER_TASKS


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (upstream, wmt):
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


# --- the result ---------------------------------------------------------------------------------------------------


@given(pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20))
def test_what_is_left_out_is_counted(pairs: list[tuple[int, int]]) -> None:
    rows, counts = clean(*np.array(pairs, dtype=int).reshape(-1, 2).T, longest=8, ratio=1.5)
    assert rows.tolist() == [i for i, (a, b) in enumerate(pairs) if 0 < a <= 8 and 0 < b <= 8 and max(a, b) <= 1.5 * min(a, b)]
    assert counts["empty"] == sum(0 in pair for pair in pairs)
    assert counts["long"] == sum(0 not in pair and max(pair) > 8 for pair in pairs)
    assert sum(counts.values()) + len(rows) == len(pairs)


def test_every_pair_is_kept_or_counted(prepared: Path, corpus: Path) -> None:
    counts = {"pairs": 100, "empty": 2, "long": 1, "unequal": 1, "long_subwords": 1, "unequal_subwords": 0, "kept": 95}
    assert read_manifest(prepared)["counts"] == counts | {"valid": 9, "test": 8}
    src, tgt = ((corpus / f"train.{language}").read_text().splitlines() for language in ("en", "de"))
    kept = [i for i in range(100) if i not in (3, 5, 40, 50, 60)]
    _, vocabulary, text, pairs = load_prepared(prepared)
    assert len(vocabulary) <= SMALL.subwords
    # Every second of 96 pairs.
    sample = [i for i in range(100) if i not in (3, 5, 40, 50)][::2]
    assert vocabulary.to_json() == vocabulary.subwords([side[i] for side in (src, tgt) for i in sample], SMALL.subwords).to_json()
    assert list(text["train"].src) == [src[i] for i in range(100) if i not in (3, 5, 40, 50)]
    assert [len(text[side]) for side in ("valid", "test")] == [9, 8]
    expected = Pairs.from_tokens(*(vocabulary.encode([side[i] for i in kept]) for side in (src, tgt)))
    batch, wanted = pairs.batch(np.arange(95)), expected.batch(np.arange(95))
    assert [a.tolist() for a in batch[:3]] == [a.tolist() for a in wanted[:3]]
    shards = [datasets.Dataset.from_file(str(shard)) for shard in sorted(prepared.glob("train-*.arrow"))]
    assert [len(row) + 2 for shard in shards for row in shard["tgt"]] == pairs.tgt_lengths.tolist()
    assert len(shards) == 4


def test_subwords_have_a_ratio_of_their_own(corpus: Path, tmp_path: Path) -> None:
    manifest = prepare(NAME, tmp_path / "out", replace(SMALL, ratio=1.1), corpus=corpus)
    *_, pairs = load_prepared(tmp_path / "out")
    a, b = pairs.src_lengths - 1, pairs.tgt_lengths - 2
    assert (np.maximum(a, b) <= 1.1 * np.minimum(a, b)).all()
    assert manifest["counts"]["unequal_subwords"] == 95 - len(pairs) > 0


def test_an_executor_makes_the_same_files(prepared: Path, corpus: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        prepare(NAME, tmp_path / "out", SMALL, corpus=corpus, executor=pool)
    assert files(tmp_path / "out") == files(prepared)


def test_killed_at_random_moments_it_makes_the_same_files(prepared: Path, corpus: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run_killed(prepare_small, (corpus, out), out, kills=6, rng=rng, steps=2)
    assert files(out) == files(prepared)


@pytest.mark.parametrize(
    "gone",
    [
        ["train-00002.arrow", "manifest.json"],
        ["text-00000.arrow"],
        ["text-00001.arrow", "train-00001.arrow"],
        ["text-00003.arrow", "vocabulary.json", "train-00003.arrow", "manifest.json"],
        ["text.json", "train-00000.arrow", "manifest.json"],
    ],
)
def test_what_is_missing_is_made_again_and_nothing_else(mine: Path, prepared: Path, corpus: Path, gone: list[str]) -> None:
    for name in gone:
        (mine / name).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in mine.glob("*.arrow")}
    prepare_small(corpus, mine)
    assert files(mine) == files(prepared)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in mine.glob("*.arrow")}.items()


def test_memory_does_not_grow_with_the_corpus(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six times the pairs take hardly more memory of Python and of Arrow; mapped files are not this process's."""
    monkeypatch.setattr(wmt, "_EXAMPLES", 100)
    words, peaks, sizes = ["abcdefgh" * 8, "hgfedcba" * 8], [], []
    for n in (2_000, 12_000):
        folder = Path(shutil.copytree(corpus, tmp_path / str(n)))
        for language in ("en", "de"):
            rows = np.random.default_rng(0).integers(len(words), size=(n, 5))
            (folder / f"train.{language}").write_text("".join(" ".join(words[i] for i in row) + "\n" for row in rows))
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
        pool, usual = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        tracemalloc.start()
        try:
            prepare(NAME, tmp_path / f"out-{n}", replace(SMALL, shard=500, sample=100), corpus=folder)
            peaks.append(tracemalloc.get_traced_memory()[1] + pool.max_memory())
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(usual)
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 10


# --- what does not fit --------------------------------------------------------------------------------------------


def refused(message: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        prepare(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_a_damaged_corpus(corpus: Path, tmp_path: Path) -> None:
    # What else is refused of files is tested in test_corpora.py.
    cases = (
        ("validation.en", b"\n" * 9, "valid: the source of pair 1 is empty"),
        ("validation.en", b"a\n" + b"a " * 251 + b"\n" + b"a\n" * 7, "valid: pair 2 has 251 words, more than 250; shorten it"),
        ("validation.en", "a\u2581b\n".encode() + b"a\n" * 8, "valid: pair 1 holds \u2581, which stands for spaces; replace it"),
        ("train.en", b"a\n\xff\n" * 50, r"train\.en, line 2: not UTF-8 at byte 1"),
    )
    for number, (name, data, message) in enumerate(cases):
        folder = Path(shutil.copytree(corpus, tmp_path / f"{number}"))
        (folder / name).write_bytes(data)
        refused(message, NAME, tmp_path / f"out-{number}", SMALL, corpus=folder)
    # Mended, as the message says; nothing was made of what it was before.
    shutil.copy(corpus / "validation.en", tmp_path / "0")
    prepare_small(tmp_path / "0", tmp_path / "out-0")


def test_too_little_disk(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    refused(r"cleaned text and tokens need about 0\.00 GiB, and 0\.00 GiB are free", NAME, tmp_path / "out", SMALL, corpus=corpus)
    assert not list((tmp_path / "out").glob("*.arrow"))


def test_other_settings_and_other_files_need_another_folder(mine: Path, corpus: Path, tmp_path: Path) -> None:
    refused("cannot be written: its folder is a file", NAME, corpus / "train.en", SMALL, corpus=corpus)
    refused(r"was prepared otherwise: subwords is 120 there and 99 here; choose", NAME, mine, replace(SMALL, subwords=99), corpus=corpus)
    refused("otherwise: source is", NAME, mine, SMALL, corpus=write_corpus(tmp_path / "other", 101))
    refused("otherwise: task is wmt14.en-de there and wmt19.en-de here", "wmt19.en-de", mine, SMALL, corpus=corpus)


@pytest.mark.parametrize("name", ["text-00001.arrow", "train-00001.arrow", "vocabulary.json", "text.json", "manifest.json"])
def test_damage_is_named_and_can_be_made_again(mine: Path, prepared: Path, corpus: Path, name: str) -> None:
    whole = (mine / name).read_bytes()
    for damaged in (whole[: len(whole) * 3 // 4] + b"\0" + whole[len(whole) * 3 // 4 + 1 :], whole[:-200], b"", b"{}", b"[]"):
        (mine / name).write_bytes(damaged)
        refused(rf"{name}: damaged", NAME, mine, SMALL, corpus=corpus)
    for reason in ("damaged", "missing"):
        if not name.startswith("text-"):  # which has had its use
            with pytest.raises(ValueError, match=f"{name}: {reason}; remove what is left of it and prepare the corpus again$"):
                load_prepared(mine)
        (mine / name).unlink(missing_ok=True)
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


# --- the task and the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_a_task_finds_what_was_prepared(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=f"{name} is not prepared; `llmpp prepare {name}` does it"):
        registry._FACTORIES[name]()
    monkeypatch.setenv("LLMPP_DATA_DIR", str(tmp_path))
    lines = write_corpus(tmp_path / name)
    for split in ("train", "validation", "test"):
        sides = [(lines / f"{split}.{language}").read_text().splitlines() for language in ("en", "de")]
        pairs = ({"translation": {"en": src, name[-2:]: tgt}} for src, tgt in zip(*sides, strict=True))
        (lines / f"{split}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        for language in ("en", "de"):
            (lines / f"{split}.{language}").unlink()
    out = tmp_path / "prepared" / name
    manifest = prepare(name, out, SMALL)
    assert not (out / "rows").exists()
    task = registry._FACTORIES[name]()
    assert (task.name, task.title, task.space) == (name, PAPER_TASKS[name].title, HAT_WMT)
    assert task.languages == ("English", {"de": "German", "fr": "French"}[name[-2:]])
    assert (manifest["counts"]["kept"], len(task.pairs["train"]), len(task.pairs["valid"])) == (95, 95, 9)
    assert task.bleu(task.vocabulary.encode(list(task.text["test"].tgt)), "test") > 99.9
    # HAT warms up for 4,000 of 40,000 updates, supernets for 10,000.
    assert [recipe.rate(4000) < recipe.learning_rate for recipe in (task.recipe, task.supernet_recipe)] == [False, True]
    assert task.recipe.rate(3999) == task.supernet_recipe.rate(9999) == 1e-3
    with pytest.raises(ValueError, match=f"prepared for {name}, not for synthetic"):
        registry.prepared_task("synthetic", out)


def test_the_command_prints_filters_and_signature(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", NAME, "--out", str(tmp_path / "out"), "--corpus", str(corpus), "--subwords", "120"]
    assert main(command) == 0
    output = capsys.readouterr().out
    for line in (
        "95 of 100 training pairs kept",
        "1 of more than 250 words",
        "BLEU signature  nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp",
    ):
        assert line in output
    assert main(command) == 0
    assert capsys.readouterr().out == output
    assert main([*command[:-1], "70000"]) == 2
    assert capsys.readouterr().err == "subwords: at most 65,536, got 70,000\n"
