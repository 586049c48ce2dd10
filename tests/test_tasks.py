"""Tasks: the built-in ones, and how a user makes one."""

from __future__ import annotations

import json
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmpp_book import repository
from llmpp_book.studies.measurements import task_digest
from llmpp_core.llm.prompts import build_prompt
from llmpp_core.nets.training import Recipe
from llmpp_core.space.search_space import SMALL, TINY
from llmpp_core.tasks import registry
from llmpp_core.tasks.registry import load_task, register, task_names
from llmpp_core.tasks.task import SIDES, Task
from llmpp_core.text.special_tokens import UNK
from llmpp_core.text.synthetic import Language
from llmpp_core.upstream import PAPER_TASKS

RECIPE = Recipe(updates=10, batch_tokens=500, learning_rate=1e-3)
MULTI30K = [f"multi30k{mini}.en-{target}" for mini in ("", "-mini") for target in ("de", "fr", "cs")]


def sentences(n: int, seed: int) -> tuple[list[str], list[str]]:
    return Language().pairs(n, np.random.default_rng([seed]), longest=12)


def make(name: Any = "ours", **changes: Any) -> Task:
    text = {side: sentences(n, seed) for seed, (side, n) in enumerate({"train": 60, "valid": 8, "test": 8}.items())}
    return Task.from_text(name, **{**text, "space": TINY, "recipe": RECIPE, "subwords": 150, **changes})


@pytest.fixture(scope="module")
def task() -> Task:
    return make()


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of the test's own."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


# --- names --------------------------------------------------------------------------------------------------------


def test_names_are_given_once(own_registry: None) -> None:
    assert set(task_names()) >= {"synthetic", *MULTI30K, *PAPER_TASKS}
    with pytest.raises(ValueError, match=r"unknown task 'wmt15'; known are multi30k-mini.en-cs, .*synthetic"):
        load_task("wmt15")
    with pytest.raises(ValueError, match="there is a task 'synthetic' already"):
        register("synthetic")(make)
    assert register("ours")(make) is register("ours")(make)
    for title in ("first", "again"):

        @register("cell")
        def cell(title: str = title) -> Task:
            return make(title=title)

        assert load_task("cell").title == title
    register("none")(lambda: "task")  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="task 'none': the function registered for it returned str, not a Task"):
        load_task("none")


def test_a_task_of_files_is_made_once(own_registry: None, tmp_path: Path) -> None:
    files = tmp_path / "a.en", tmp_path / "a.de"
    for path, text in zip(files, sentences(20, 0), strict=True):
        path.write_text("\n".join(text) + "\n")
    register("files")(partial(make, train=files))
    task = load_task("files")
    assert (task.text["train"].src, task.text["train"].tgt) == sentences(20, 0)
    assert task.supernet_recipe == task.recipe
    assert load_task("files") is task


# --- text to tokens -----------------------------------------------------------------------------------------------


def test_pairs_are_the_text(task: Task) -> None:
    for side in SIDES:
        pairs, text = task.pairs[side], task.text[side]
        for tokens, lengths, given in ((pairs.src, pairs.src_lengths, text.src), (pairs.tgt, pairs.tgt_lengths, text.tgt)):
            assert task.vocabulary.decode([row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)]) == list(given)


def test_the_vocabulary_knows_the_training_side_alone() -> None:
    task = make(valid=(["Ω seen later"], ["x"]))
    assert UNK not in task.pairs["train"].src
    assert UNK in task.pairs["valid"].src


def test_long_training_pairs_are_left_out() -> None:
    src, tgt = sentences(60, 0)
    train = [*src, "lo " * 99], [*tgt, "lo"]
    tokens = max(max(map(len, make().vocabulary.encode(side))) for side in (src, tgt))
    for longest, kept in ((tokens, 60), (tokens - 1, 59)):
        task = make(train=train, longest=longest, valid=(["lo"], ["lo"]), test=(["lo"], ["lo"]))
        assert len(task.text["train"]) == 61
        assert len(task.pairs["train"]) <= kept
        assert len(task.pairs["train"]) == kept or longest < tokens


SHORT, LONG = ["lo", "lo"], ["lo", "q " * 101]
MARKED = (["lo", "lo"], ["lo", "\u2581lo"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid": (LONG, SHORT)}, r"task ours: the source of valid pair 2 has \d+ tokens, more than 100; raise `longest`"),
        ({"test": (SHORT, LONG)}, r"task ours: the target of test pair 2 has \d+ tokens, more than 100; raise `longest`"),
        ({"longest": 0}, "longest is 0; allowed are 1 to 510"),
        ({"longest": 511}, "longest is 511; allowed are 1 to 510"),
        ({"beam": 0}, "beam is 0; expected an integer from 1"),
        ({"beam": 2.0}, r"beam is 2\.0; expected an integer from 1"),
        ({"bleu_tokenizer": "13"}, "bleu_tokenizer is '13'; sacrebleu has none, "),
        ({"train": MARKED[::-1]}, r"task ours: the source of train pair 2 holds '\u2581' \(U\+2581\), by which"),
        ({"test": MARKED}, r"task ours: the target of test pair 2 holds '\u2581' \(U\+2581\), by which"),
        ({"train": ([], [])}, "task ours: no train text; needed are train, valid, test"),
        ({"test": ([], [])}, "task ours: no test text"),
        ({"subwords": 4}, "subwords: expected an integer from 5, got 4"),
        ({"subwords": 100.0}, "subwords: expected an integer from 5, got 100.0"),
        *(({"name": name}, "a name of files; allowed are letters, digits") for name in ("../evil", "a/b", "", ".hidden", "a\nb", "-x", 3)),
    ],
)
def test_what_makes_no_task_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_side_that_is_missing_is_named(task: Task) -> None:
    with pytest.raises(ValueError, match="task ours: no valid, test text; needed are train, valid, test"):
        Task("ours", "Ours", TINY, task.vocabulary, {"train": task.text["train"]}, RECIPE, RECIPE)


def test_sentences_of_a_series_go_by_position() -> None:
    src, tgt = sentences(12, 0)
    shuffled = tuple(pd.Series(side, index=np.random.default_rng(0).permutation(12)) for side in (src, tgt))
    expected, task = make(train=(src, tgt)), make(train=shuffled, valid=tuple(iter(side) for side in sentences(8, 1)))
    assert task.prompt_task().examples == expected.prompt_task().examples
    assert (task.text["train"].src, len(task.text["valid"])) == (src, 8)


# --- BLEU ---------------------------------------------------------------------------------------------------------


def test_bleu_of_the_references_is_100_and_keeps_case(task: Task) -> None:
    references = task.vocabulary.encode(list(task.text["test"].tgt))
    assert task.bleu(references, "test") == pytest.approx(100)
    assert task.bleu(references[::-1], "test") < 50
    text = ["The Old Man reads a long book ."], ["Der Alte Mann liest ein langes Buch ."]
    cased = make(train=([*text[0], text[0][0].lower()], [*text[1], text[1][0].lower()]), test=text)
    assert cased.bleu(cased.vocabulary.encode([text[1][0].lower()]), "test") < 60


@pytest.mark.parametrize("tokenizer", ["13a", "none"])
def test_the_signature_says_how_bleu_is_measured(tokenizer: str) -> None:
    assert f"nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:" in make(bleu_tokenizer=tokenizer).bleu_signature()


WORDS = ["café", "naïve", "über", "schöne", "Häuser", "année", "élève", "kočka", "žlutý", "kůň"]


@pytest.mark.parametrize("form", ["NFC", "NFD", "spaces"])
def test_references_are_compared_in_the_form_that_the_vocabulary_gives_text(form: str) -> None:
    rng = np.random.default_rng(0)
    refs = [" ".join(rng.choice(WORDS, 8)) for _ in range(50)]
    given = [ref.replace(" ", " \u00a0") for ref in refs] if form == "spaces" else [unicodedata.normalize(form, ref) for ref in refs]
    side = (["a dog sleeps here"] * 50, given)
    task = make(train=side, valid=side, test=side, subwords=200)
    assert task.bleu(task.vocabulary.encode(given), "valid") == pytest.approx(100)


# --- prompts ------------------------------------------------------------------------------------------------------


def test_prompts_show_short_training_pairs(task: Task) -> None:
    examples, pairs = task.prompt_task().examples, set(zip(task.text["train"].src, task.text["train"].tgt, strict=True))
    assert len(set(examples)) == 5
    assert set(examples) <= pairs
    assert examples == make().prompt_task().examples
    assert np.mean([len(src) for src, _ in examples]) < np.mean([len(src) for src, _ in pairs])
    assert len(task.prompt_task(3).examples) == 3
    assert len(make(train=(["a", "b"], ["x", "y"])).prompt_task().examples) == 2


def test_prompts_tell_costs_apart() -> None:
    task = make(languages=("English", "German"), title="Ours")
    prompt = build_prompt(task.prompt_task(), [(TINY.smallest(), 10.0)], [TINY.largest()])
    shown = [line.removeprefix("GFLOPS: ") for line in prompt.text.splitlines() if line.startswith("GFLOPS: ")]
    assert 0 < float(shown[0]) < float(shown[1])
    assert "machine translation from English to German (Ours)" in prompt.text


# --- built-in tasks -----------------------------------------------------------------------------------------------


def test_made_up_sentences_depend_on_the_seeds_alone_and_are_no_longer_than_asked() -> None:
    first, again = (Language(3).pairs(50, np.random.default_rng(7), longest=12) for _ in range(2))
    assert first == again
    assert Language(3).pairs(50, np.random.default_rng(8), longest=12) != first
    assert Language(4).pairs(50, np.random.default_rng(7), longest=12) != first
    assert max(len(sentence.replace("-", " -").split()) for sentences in first for sentence in sentences) == 12


def test_the_synthetic_task_is_the_one_that_was_measured() -> None:
    # Which has all of its grammar, and no sentence on two sides.
    tables = repository.RESULTS.rglob("synthetic*.jsonl")
    rows = [json.loads(line) for table in tables for line in table.read_text().splitlines() if '"data_sha256"' in line]
    assert {row["data_sha256"] for row in rows} == {task_digest(load_task("synthetic"))}


@pytest.mark.needs_data("multi30k")
@pytest.mark.parametrize("name", [MULTI30K[2], *MULTI30K[3:]])
def test_multi30k(name: str) -> None:
    task, mini = load_task(name), "mini" in name
    assert len(task.text["train"]) == len(task.pairs["train"]) == (6000 if mini else 29_000)
    assert (len(task.vocabulary), task.space) == ((2000, TINY) if mini else (8000, SMALL))
    assert task.languages == ("English", {"de": "German", "fr": "French", "cs": "Czech"}[name[-2:]])
    # Rare characters of the test side may be unknown, hardly ever.
    for side, share in (("train", 0), ("valid", 0.001), ("test", 0.001)):
        tokens = task.pairs[side].tgt
        assert (tokens == UNK).sum() <= share * (tokens != 0).sum()
    assert task.bleu(task.vocabulary.encode(list(task.text["test"].tgt)), "test") > 99.9
    if mini:
        assert max(len(sentence.split()) for side in SIDES for sentence in task.text[side].src) == 12
