"""The built-in tasks, and names for tasks of your own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_core.jobs.files import SourceError
from llmpp_core.nets.training import Recipe
from llmpp_core.space.search_space import HAT_WMT, SMALL, TINY
from llmpp_core.tasks.task import Task
from llmpp_core.text.corpora import LANGUAGES, SIDES, ParallelText, multi30k
from llmpp_core.text.synthetic import Language
from llmpp_core.text.vocabulary import Vocabulary
from llmpp_core.text.wmt import LONGEST, load_prepared, prepared_folder
from llmpp_core.upstream import PAPER_TASKS

_FACTORIES: dict[str, Callable[[], Task]] = {}


def register(name: str) -> Callable[[Callable[[], Task]], Callable[[], Task]]:
    """Return a decorator that makes a function without arguments the maker of the task `name`; ValueError if another one is already."""

    def add(factory: Callable[[], Task]) -> Callable[[], Task]:
        if (known := _FACTORIES.get(name, factory)) is not factory:
            # A cell that is run again defines its function again.
            if any(getattr(known, part, known) != getattr(factory, part, factory) for part in ("__module__", "__qualname__")):
                raise ValueError(f"there is a task {name!r} already; choose another name")
            load_task.cache_clear()
        _FACTORIES[name] = factory
        return factory

    return add


def task_names() -> list[str]:
    """Return the names that `load_task` knows."""
    return sorted(_FACTORIES)


@cache
def load_task(name: str) -> Task:
    """Make the task `name`, once per process; ValueError if there is none of that name, or what was registered makes none."""
    if name not in _FACTORIES:
        raise ValueError(f"unknown task {name!r}; known are {', '.join(task_names())}")
    task = _FACTORIES[name]()
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r}: the function registered for it returned {type(task).__name__}, not a Task")
    return task


@register("synthetic")
def _synthetic() -> Task:
    language, text = Language(), dict[str, ParallelText]()
    for i, (side, n) in enumerate({"train": 20_000, "valid": 500, "test": 500}.items()):
        seen = [sentence for other in text.values() for sentence in other.src]
        text[side] = ParallelText(*language.pairs(n, np.random.default_rng([0, i]), without=seen), f"synthetic {side}")
    return Task(
        name="synthetic",
        title="Synthetic",
        space=TINY,
        vocabulary=Vocabulary.morphemes([*text["train"].src, *text["train"].tgt]),
        text=text,
        recipe=Recipe(updates=2000, batch_tokens=750, learning_rate=3e-3, dropout=0.0),
        supernet_recipe=Recipe(updates=4000, batch_tokens=750, learning_rate=3e-3, dropout=0.0),
        languages=("one made-up language", "another"),
        bleu_tokenizer="none",
        beam=1,
        longest=40,
    )


def _multi30k(target: str) -> Task:
    # Published text-only Transformers of 4 + 4 layers train for at most 8,000 updates of 2 x 4,096 tokens with dropout 0.3 and label
    # smoothing 0.1, on 10,000 joint subwords, and are read with beam 5 (Wu et al., 2021). 8,000 joint subwords lengthen sentences by
    # 2 to 4 % over 10,000 and save a fifth of the embedding, the largest tensor of a small network.
    recipe = Recipe(updates=3000, batch_tokens=12_000, learning_rate=1.5e-3, dropout=0.3)
    text: dict[str, Any] = {side: multi30k(target, side) for side in SIDES}
    languages, title = ("English", LANGUAGES[target]), f"Multi30k En-{target.capitalize()}"
    return Task.from_text(
        f"multi30k.en-{target}", **text, title=title, languages=languages, space=SMALL, recipe=recipe, subwords=8000, beam=5
    )


def multi30k_mini(target: str, words: int = 12, updates: int = 1000, learning_rate: float = 3e-3) -> Task:
    """Return Multi30k cut down for a CPU: captions of few words, 6,000 of them to train on, and the space TINY.

    Length and recipe are by default those of the task "multi30k-mini.en-de", chosen in a pilot (`llmpp_book.studies.pilot`).
    """
    text: dict[str, Any] = {side: multi30k(target, side).shorter(words, at_most=6000) for side in SIDES}
    recipe = Recipe(updates=updates, batch_tokens=1000, learning_rate=learning_rate, dropout=0.1)
    return Task.from_text(
        f"multi30k-mini.en-{target}",
        **text,
        title=f"Multi30k mini En-{target.capitalize()}",
        languages=("English", LANGUAGES[target]),
        space=TINY,
        recipe=recipe,
        supernet_recipe=replace(recipe, updates=2 * updates),
        subwords=2000,
        beam=1,
        longest=60,
    )


def prepared_task(name: str, folder: Path) -> Task:
    """Return a WMT task from the folder that `llmpp_core.text.wmt.prepare` made; ValueError if it is damaged or of another task."""
    manifest, vocabulary, text, pairs = load_prepared(folder)
    if manifest["task"] != name:
        raise ValueError(f"{folder}: prepared for {manifest['task']}, not for {name}")
    # HAT's files configs/wmt*/subtransformer/common.yml and supertransformer/space0.yml: 40,000 updates of 128 x 4,096 tokens, learning
    # rate 0.001 with 4,000 updates of warm-up, 10,000 for supernets. They clip no gradients and also drop out a tenth of the attention.
    recipe = Recipe(updates=40_000, batch_tokens=4096, accumulate=128, learning_rate=1e-3, warmup=0.1, dropout=0.3)
    return Task(
        name=name,
        title=PAPER_TASKS[name].title,
        space=HAT_WMT,
        vocabulary=vocabulary,
        text=text,
        recipe=recipe,
        supernet_recipe=replace(recipe, warmup=0.25),
        languages=("English", PAPER_TASKS[name].target),
        longest=LONGEST,
        stored=pairs,
    )


def _wmt(name: str) -> Task:
    folder = prepared_folder(name)
    if not (folder / "manifest.json").exists():
        raise SourceError(f"{name} is not prepared; `llmpp prepare {name}` does it, in hours, and resumes")
    return prepared_task(name, folder)


for _target in ("de", "fr", "cs"):
    register(f"multi30k.en-{_target}")(partial(_multi30k, _target))
    register(f"multi30k-mini.en-{_target}")(partial(multi30k_mini, _target))
for _name in PAPER_TASKS:
    register(_name)(partial(_wmt, _name))
