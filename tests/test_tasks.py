"""Tasks: the built-in ones, and how a user makes one."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmpp_core import upstream as sources
from llmpp_core.llm.prompts import build_prompt
from llmpp_core.nets.training import Recipe
from llmpp_core.space.search_space import HAT_WMT, SMALL, SPACES, TINY
from llmpp_core.tasks import registry
from llmpp_core.tasks.registry import load_task, register, task_names
from llmpp_core.tasks.task import SIDES, Task
from llmpp_core.text import corpora
from llmpp_core.text.synthetic import Language
from llmpp_core.text.vocabulary import UNK
from llmpp_core.text.wmt import SUBWORDS, Settings, prepare

RECIPE = Recipe(updates=10, batch_tokens=500, learning_rate=1e-3)
MULTI30K = [f"multi30k{mini}.en-{target}" for mini in ("", "-mini") for target in ("de", "fr", "cs")]
WMT = {"wmt14.en-de": "WMT'14 En-De", "wmt14.en-fr": "WMT'14 En-Fr", "wmt19.en-de": "WMT'19 En-De"}


def sentences(n: int, seed: int) -> tuple[list[str], list[str]]:
    return Language().pairs(n, np.random.default_rng([seed]), longest=12)


def make(**changes: Any) -> Task:
    settings = {
        "train": sentences(60, 0),
        "valid": sentences(8, 1),
        "test": sentences(8, 2),
        "space": TINY,
        "recipe": RECIPE,
        "subwords": 150,
    }
    return Task.from_text("ours", **{**settings, **changes})


@pytest.fixture(scope="module")
def task() -> Task:
    return make()


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of the test's own."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


# Names


def test_the_built_in_tasks() -> None:
    assert set(task_names()) >= {"synthetic", *MULTI30K, *WMT}


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'wmt15'; known are multi30k-mini.en-cs, .*synthetic"):
        load_task("wmt15")


def test_a_name_is_given_once(own_registry: None) -> None:
    with pytest.raises(ValueError, match="there is a task 'synthetic' already"):
        register("synthetic")(make)
    assert register("ours")(make) is register("ours")(make)


def test_a_user_registers_a_task_of_files(own_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, side in enumerate(SIDES):
        for language, text in zip(("en", "de"), sentences(20, seed), strict=True):
            Path(f"{side}.{language}").write_text("\n".join(text) + "\n")

    @register("files.en-de")
    def ours() -> Task:
        text: dict[str, Any] = {side: (f"{side}.en", f"{side}.de") for side in SIDES}
        recipe = Recipe(updates=2000, batch_tokens=8192, learning_rate=1.5e-3, dropout=0.3)
        return Task.from_text("files.en-de", **text, space=SMALL, recipe=recipe, languages=("English", "German"))

    task = load_task("files.en-de")
    assert {side: (list(text.src), list(text.tgt)) for side, text in task.text.items()} == {
        side: sentences(20, seed) for seed, side in enumerate(SIDES)
    }
    assert task.supernet_recipe == task.recipe
    assert load_task("files.en-de") is task


# Text to tokens


def test_pairs_are_the_text(task: Task) -> None:
    for side in SIDES:
        for tokens, lengths, text in (
            (task.pairs[side].src, task.pairs[side].src_lengths, task.text[side].src),
            (task.pairs[side].tgt, task.pairs[side].tgt_lengths, task.text[side].tgt),
        ):
            assert task.vocabulary.decode([row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)]) == list(text)


def test_the_vocabulary_knows_the_training_side_alone() -> None:
    task = make(valid=(["Ω seen later"], ["x"]))
    assert UNK not in task.pairs["train"].src
    assert UNK in task.pairs["valid"].src


def test_long_training_pairs_are_left_out() -> None:
    src, tgt = sentences(60, 0)
    task = make(train=([*src, "lo " * 99], [*tgt, "lo"]), longest=90)
    assert len(task.text["train"]) == 61
    assert len(task.pairs["train"]) == 60


@pytest.mark.parametrize(("side", "which"), [("valid", "source"), ("test", "target")])
def test_a_long_held_out_sentence_is_named(side: str, which: str) -> None:
    short, long = ["lo", "lo"], ["lo", "q " * 101]
    text = (long, short) if which == "source" else (short, long)
    with pytest.raises(ValueError, match=rf"task ours: the {which} of {side} pair 2 has \d+ tokens, more than 100; raise `longest`"):
        make(**{side: text})


@pytest.mark.parametrize("longest", [0, 511])
def test_longest_is_what_the_network_takes(longest: int) -> None:
    with pytest.raises(ValueError, match=f"longest is {longest}; allowed are 1 to 510"):
        make(longest=longest)


def test_a_side_that_is_missing_is_named(task: Task) -> None:
    with pytest.raises(ValueError, match="task ours: no valid, test text; needed are train, valid, test"):
        Task("ours", "Ours", TINY, task.vocabulary, {"train": task.text["train"]}, RECIPE, RECIPE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [((["a"], ["a", "b"]), "ours valid: 1 source and 2 target"), ((["a", ""], ["a", "b"]), "ours valid: the source of pair 2 is empty")],
)
def test_bad_text_is_named(text: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(valid=text)


# BLEU


def test_bleu_of_the_references_is_100(task: Task) -> None:
    references = task.vocabulary.encode(list(task.text["test"].tgt))
    assert task.bleu(references, "test") == pytest.approx(100)
    assert task.bleu(references[::-1], "test") < 50


def test_bleu_keeps_case() -> None:
    text = ["The Old Man reads a long book ."], ["Der Alte Mann liest ein langes Buch ."]
    task = make(train=([*text[0], text[0][0].lower()], [*text[1], text[1][0].lower()]), test=text)
    assert task.bleu(task.vocabulary.encode([text[1][0].lower()]), "test") < 60


@pytest.mark.parametrize("tokenizer", ["13a", "none"])
def test_the_signature_says_how_bleu_is_measured(tokenizer: str) -> None:
    assert f"nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:" in make(bleu_tokenizer=tokenizer).bleu_signature()


# Prompts


def test_prompts_show_short_training_pairs(task: Task) -> None:
    prompt_task = task.prompt_task()
    pairs = set(zip(*(task.text["train"].src, task.text["train"].tgt), strict=True))
    assert len(set(prompt_task.examples)) == 5
    assert set(prompt_task.examples) <= pairs
    assert prompt_task.examples == make().prompt_task().examples
    assert np.mean([len(src) for src, _ in prompt_task.examples]) < np.mean([len(src) for src, _ in pairs])
    assert len(task.prompt_task(3).examples) == 3
    assert len(make(train=(["a", "b"], ["x", "y"])).prompt_task().examples) == 2


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_prompts_tell_costs_apart(space: Any) -> None:
    task = make(space=space, languages=("English", "German"), title="Ours")
    small, large = space.smallest(), space.largest()
    prompt = build_prompt(task.prompt_task(), [(small, 10.0)], [large])
    shown = [line.removeprefix("GFLOPS: ") for line in prompt.text.splitlines() if line.startswith("GFLOPS: ")]
    assert 0 < float(shown[0]) < float(shown[1])
    assert "machine translation from English to German (Ours)" in prompt.text


# Processes


@pytest.mark.parametrize("make_task", [make, lambda: load_task("synthetic")], ids=["subwords", "synthetic"])
def test_a_task_travels_to_another_process(make_task: Callable[[], Task]) -> None:
    task = make_task()
    references = task.vocabulary.encode(list(task.text["valid"].tgt))[::-1]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(task.bleu, references, "valid").result() == task.bleu(references, "valid")
        again = pool.submit(task.pairs["train"].to, "cpu").result()
    assert (again.src == task.pairs["train"].src).all()


# Built-in tasks


@pytest.mark.needs_data("multi30k")
@pytest.mark.parametrize("name", MULTI30K)
def test_multi30k(name: str) -> None:
    task, mini = load_task(name), "mini" in name
    assert [len(task.text[side]) for side in SIDES][:1] == ([6000] if mini else [29_000])
    assert (len(task.vocabulary), task.space) == ((2000, TINY) if mini else (8000, SMALL))
    assert len(task.pairs["train"]) == len(task.text["train"])
    assert task.languages == ("English", {"de": "German", "fr": "French", "cs": "Czech"}[name[-2:]])
    # Rare characters of the test side may be unknown, hardly ever.
    for side, share in (("train", 0), ("valid", 0.001), ("test", 0.001)):
        tokens = task.pairs[side].tgt
        assert (tokens == UNK).sum() <= share * (tokens != 0).sum()
    references = task.vocabulary.encode(list(task.text["test"].tgt))
    assert task.bleu(references, "test") > 99.9
    if mini:
        assert max(len(sentence.split()) for side in SIDES for sentence in task.text[side].src) == 10


@pytest.mark.parametrize("name", WMT)
def test_wmt_from_local_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPP_DATA_DIR", str(tmp_path))
    for module in (sources, corpora):
        monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "cache")
    (tmp_path / name).mkdir()
    for seed, split in enumerate(("train", "validation", "test")):
        rows = [{"translation": {"en": src, name[-2:]: tgt}} for src, tgt in zip(*sentences(30, seed), strict=True)]
        (tmp_path / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = prepare(name, tmp_path / "prepared" / name, Settings(SUBWORDS[name]))
    task = registry._FACTORIES[name]()
    assert (task.name, task.title, task.space) == (name, WMT[name], HAT_WMT)
    assert manifest["counts"]["kept"] == len(task.pairs["train"])
    # HAT warms up for 4,000 of 40,000 updates, supernets for 10,000.
    assert [recipe.rate(4000) < recipe.learning_rate for recipe in (task.recipe, task.supernet_recipe)] == [False, True]
    assert task.recipe.rate(3999) == task.supernet_recipe.rate(9999) == 1e-3


# Text in forms that look alike


WORDS = ["café", "naïve", "über", "schöne", "Häuser", "année", "élève", "kočka", "žlutý", "kůň"]


@pytest.mark.parametrize("form", ["NFC", "NFD", "spaces"])
def test_references_are_compared_in_the_form_that_the_vocabulary_gives_text(form: str) -> None:
    rng = np.random.default_rng(0)
    refs = [" ".join(rng.choice(WORDS, 8)) for _ in range(50)]
    given = [ref.replace(" ", " \u00a0") for ref in refs] if form == "spaces" else [unicodedata.normalize(form, ref) for ref in refs]
    side = (["a dog sleeps here"] * 50, given)
    task = make(train=side, valid=side, test=side, subwords=200)
    assert task.bleu(task.vocabulary.encode(given), "valid") == pytest.approx(100)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("which", [0, 1])
def test_text_of_subwords_is_refused(side: str, which: int) -> None:
    text = sentences(8, 5)
    text[which][3] = "\u2581" + text[which][3]
    name = ("source", "target")[which]
    with pytest.raises(ValueError, match=rf"task ours: the {name} of {side} pair 4 holds '\u2581' \(U\+2581\), by which"):
        make(**{side: text})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subwords": -1}, "subwords: expected an integer from 5, got -1"),
        ({"subwords": 4}, "subwords: expected an integer from 5, got 4"),
        ({"subwords": 100.0}, "subwords: expected an integer from 5, got 100.0"),
        ({"train": ([], [])}, "task ours: no train text; needed are train, valid, test"),
        ({"valid": ([], [])}, "task ours: no valid text"),
        ({"test": ([], [])}, "task ours: no test text"),
        ({"valid": ([1], ["x"])}, "ours valid: the source has a sentence that is no text"),
    ],
)
def test_what_makes_no_task_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a\nb", "-x", 3])
def test_a_name_that_is_none_for_files_is_refused(name: Any) -> None:
    side = sentences(5, 0)
    with pytest.raises(ValueError, match="a name of files; allowed are letters, digits"):
        Task.from_text(name, train=side, valid=side, test=side, space=TINY, recipe=RECIPE, subwords=150)


@pytest.mark.parametrize("made", [None, "task"])
def test_a_function_that_makes_no_task_is_named(own_registry: None, made: Any) -> None:
    register("none")(lambda: made)
    with pytest.raises(ValueError, match=f"task 'none': the function registered for it returned {type(made).__name__}, not a Task"):
        load_task("none")


def test_sentences_of_a_series_go_by_position() -> None:
    src, tgt = sentences(12, 0)
    shuffled = [pd.Series(side, index=np.random.default_rng(0).permutation(12)) for side in (src, tgt)]
    expected, task = make(train=(src, tgt)), make(train=tuple(shuffled), valid=tuple(iter(side) for side in sentences(8, 1)))
    assert task.prompt_task().examples == expected.prompt_task().examples
    assert (task.text["train"].src, len(task.text["valid"])) == (src, 8)
