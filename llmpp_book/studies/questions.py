"""Questions to language models that are worth recording: named lists of prompts about architectures.

An `Experiment` builds the same questions every time, so answers recorded on one machine fit on every other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from llmpp_core.llm.prompts import FULL, LEVELS, Efficiency, Prompt, PromptTask, build_prompt, example_pairs
from llmpp_core.metrics import random_splits
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_flops
from llmpp_core.space.search_space import HAT_WMT
from llmpp_core.upstream import PAPER_TASKS, PaperTask, TFSSplit, tfs_splits

# Architectures per request of the forms other than "single".
_BATCH = 10


def _wmt_task(corpus: str, task: PaperTask) -> PromptTask:
    return PromptTask(
        task.title,
        description=f"machine translation from English to {task.target} on {task.title.split()[0]}",
        metric="BLEU",
        metric_description="a percentage, on the validation set",
        low=0.0,
        high=100.0,
        examples=example_pairs(corpus.partition(".")[2]),
        # As in the official prompts: with the output projection, whose size is the vocabulary of the upstream records.
        space=HAT_WMT,
        efficiency=Efficiency(
            "GFLOPS",
            description="the billions of floating-point operations of one forward pass over a sentence pair",
            value=lambda arch: count_flops(arch, task.subwords, qkv_dim=HAT_WMT.qkv_dim) / 1e9,
        ),
    )


#: The paper's tasks as prompts describe them.
WMT_TASKS = {task.records: _wmt_task(corpus, task) for corpus, task in PAPER_TASKS.items()}


class Question(NamedTuple):
    """One prompt, the architectures it asks about, and their true scores (nan where unknown); labels are in JSON types."""

    labels: dict[str, Any]
    prompt: Prompt
    architectures: tuple[Architecture, ...]
    true: tuple[float, ...]


@dataclass(frozen=True)
class Experiment:
    """Questions worth recording."""

    name: str
    description: str
    questions: Callable[[], list[Question]]  #: Builds the questions, the same each time.
    samples: int = 1  #: Answers per question.


def ask_test_sets(
    splits: Iterable[TFSSplit],
    tasks: Mapping[str, PromptTask],
    level: str = FULL,
    form: str = "single",
    anonymous: bool = False,
    demonstrations: int | None = None,
    shuffled: bool = False,
) -> list[Question]:
    """Return questions about the test architectures of some splits, given their demonstrations, or the first so many of them.

    Forms other than "single" ask about ten architectures at once. `anonymous` prompts leave out what would tell which task it is. One whose
    demonstrations are `shuffled` has their scores permuted: a model that reads them is misled, one that remembers is not.
    """
    questions = []
    for split in splits:
        task = tasks[split.task].anonymous() if anonymous else tasks[split.task]
        shown = (shuffle(split) if shuffled else split).demonstrations.iloc[:demonstrations]
        pairs = list(zip(shown["architecture"], shown["bleu"].tolist(), strict=True))
        labels = {
            "task": split.task,
            "split": split.seed,
            "level": level,
            "form": form,
            "anonymous": anonymous,
            "demonstrations": len(shown),
        }
        labels |= {"shuffled": True} if shuffled else {}
        archs, true = tuple(split.test["architecture"]), tuple(split.test["bleu"].tolist())
        size = 1 if form == "single" else _BATCH
        for first in range(0, len(archs), size):
            group = archs[first : first + size]
            prompt = build_prompt(task, pairs, group, level, form)
            questions.append(Question({**labels, "first": first}, prompt, group, true[first : first + size]))
    return questions


def shuffle(split: TFSSplit) -> TFSSplit:
    """Return a split whose demonstrations have each other's scores, permuted as in the prompts of the shuffled experiments."""
    shown = split.demonstrations
    scores = np.random.default_rng(split.seed).permutation(shown["bleu"].to_numpy(dtype=float))
    return split._replace(demonstrations=shown.assign(bleu=scores))


def own_splits(task_name: str = "synthetic", n: int = 3) -> list[TFSSplit]:
    """Return random splits of a benchmark of this project's own: ten demonstrations each, and 38 test architectures."""
    # Loads torch, which most experiments do without.
    from llmpp_book.studies import ground_truth as benchmark

    return random_splits({task_name: benchmark.records(task_name)}, np.random.default_rng(0), n)


def _build(own: str | None = None, first: bool = False, unlabelled: int = 0, **choices: Iterable[Any]) -> Callable[[], list[Question]]:
    """Return what builds the questions about the paper's splits or an own task's, in every combination of choices of `ask_test_sets`.

    `first` takes one split of each task only; `unlabelled` asks about so many architectures without known scores in place of test sets.
    """

    def questions() -> list[Question]:
        splits, tasks, space = own_splits(own) if own else list(tfs_splits()), WMT_TASKS, HAT_WMT
        if own:
            from llmpp_core.tasks.registry import load_task

            task = load_task(own)
            tasks, space = {own: task.prompt_task()}, task.space
        splits = [split for split in splits if not first or split.seed == splits[0].seed]
        if unlabelled:
            archs = space.sample_balanced(unlabelled, np.random.default_rng(2024))
            splits = [split._replace(test=pd.DataFrame({"architecture": archs, "bleu": math.nan})) for split in splits]
        variants = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
        return [question for variant in variants for question in ask_test_sets(splits, tasks, **variant)]

    return questions


def digits_questions(tens: int = 8, networks: int = 100, anonymous: bool = False) -> list[Question]:
    """Return questions about networks that read digits: of each of some tens of trained networks, about others drawn at random.

    What is shown is the accuracy of the first seed; the true score is the mean of the others.
    """
    # Loads torch, which most experiments do without.
    from llmpp_book.studies import digits

    of, splits = digits.known(digits.scores(), 1.0), []
    for number, ten in enumerate(digits.splits(tens, np.random.default_rng(0), of)):
        others = np.setdiff1d(np.arange(len(of.networks)), ten)
        drawn = np.random.default_rng([0, number]).choice(others, networks, replace=False)
        parts = [
            {"architecture": [of.networks[row] for row in rows], "bleu": told[rows]}
            for rows, told in ((ten, of.seen), (drawn, of.held_out))
        ]
        splits.append(TFSSplit("digits", number, *map(pd.DataFrame, parts)))
    return ask_test_sets(splits, {"digits": digits.prompt_task()}, form="batched", anonymous=anonymous)


_TEN, _BOTH = ("batched",), (False, True)
_OWN: list[tuple[str, str, dict[str, Any], int]] = [
    ("test", "three test sets of {}, ten per request", {}, 1),
    ("repeat", "two answers to every question of {}-test", {}, 2),
    ("anonymous", "those of {}-test without names", {"anonymous": (True,)}, 1),
    ("shuffled", "those of {}-test with permuted scores", {"shuffled": (True,)}, 1),
    ("distill", "labels of 500 architectures of {}", {"first": True, "unlabelled": 500}, 1),
]
_ALL: list[tuple[str, str, Callable[[], list[Question]], int]] = [
    ("wmt-test", "the nine test sets, one architecture per request and ten", _build(form=("single", "batched")), 1),
    ("wmt-repeat", "two answers to every question about the nine test sets, ten per request", _build(form=_TEN), 2),
    ("wmt-samples", "five answers to every question about the nine test sets, one per request", _build(), 5),
    ("wmt-ablation", "the nine test sets at every level of the prompt", _build(level=LEVELS), 1),
    ("wmt-ablation-batched", "three of them at the other levels, ten per request", _build(first=True, form=_TEN, level=[*LEVELS][:-1]), 1),
    ("wmt-demos", "the nine test sets with 1 to 10 demonstrations", _build(demonstrations=range(1, 11)), 1),
    ("wmt-demos-batched", "three of them with fewer, ten per request", _build(first=True, form=_TEN, demonstrations=(1, 3, 5, 8)), 1),
    ("wmt-anonymous", "the nine test sets without the names of task, data set and paper", _build(anonymous=(True,)), 1),
    ("wmt-anonymous-batched", "the same, ten per request", _build(form=_TEN, anonymous=(True,)), 1),
    ("wmt-shuffled-batched", "with permuted scores, with and without names", _build(form=_TEN, anonymous=_BOTH, shuffled=(True,)), 1),
    ("wmt-distill", "labels of 500 architectures per task, ten per request", _build(first=True, unlabelled=500, form=_TEN), 1),
    ("wmt-distill-3000", "labels of 3,000, those of wmt-distill first", _build(first=True, unlabelled=3000, form=_TEN), 1),
    *(
        (f"{own}-{name}", description.format(own), _build(own, form=_TEN, **choices), samples)
        for own in ("synthetic", "multi30k-mini.en-de")
        for name, description, choices, samples in _OWN
    ),
    ("digits-test", "100 networks that read digits, for each of eight tens, ten per request", digits_questions, 1),
    ("digits-anonymous", "those of the first three tens without names", partial(digits_questions, 3, anonymous=True), 1),
]
#: The experiments by name.
EXPERIMENTS = {name: Experiment(name, description, questions, samples) for name, description, questions, samples in _ALL}


def experiment(name: str) -> Experiment:
    """Return an experiment by name."""
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; allowed are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
