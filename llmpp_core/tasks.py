"""Translation tasks: sentence pairs, their vocabulary, the search space that fits them and how to train on them.

`load_task` makes the built-in ones by name; `Task.from_text` makes one of your own, and `register` gives it a name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu

from llmpp_core.batches import Pairs
from llmpp_core.corpora import LANGUAGES, SIDES, ParallelText, as_parallel, multi30k, stream
from llmpp_core.cost import count_flops
from llmpp_core.preparation import SUBWORDS, load_prepared, prepared_folder
from llmpp_core.prompts import Efficiency, PromptTask
from llmpp_core.sources import SourceError
from llmpp_core.space import HAT_WMT, SMALL, TINY, Architecture, SearchSpace
from llmpp_core.synthetic import Language
from llmpp_core.training import Recipe
from llmpp_core.transformer import MAX_LENGTH
from llmpp_core.vocabulary import Vocabulary

#: What a side may be given as: parallel text, two files, or two sequences of sentences.
Text = ParallelText | tuple[str | Path, str | Path] | tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True, eq=False)
class Task:
    """A translation task.

    Parameters
    ----------
    name : str
        Short name, that of its files in results/.
    title : str
        Name in tables and figures.
    space : SearchSpace
        The architectures that make sense for it.
    vocabulary : Vocabulary
        The vocabulary of both languages.
    text : mapping of str to ParallelText
        The sides train, valid and test.
    recipe, supernet_recipe : Recipe
        How to train one architecture, and a supernet.
    languages : tuple of str
        Names of source and target language.
    bleu_tokenizer : str
        sacrebleu's tokenizer: "13a" for natural text, "none" for text that is tokens already.
    beam : int
        Beam width with which BLEU is measured.
    longest : int
        Most tokens of a sentence, without markers, on either side. Longer training pairs are left out of `pairs`.

    Raises
    ------
    ValueError
        If the name is no name for files, a side is missing or empty, a sentence holds the mark that the vocabulary has for spaces, a
        validation or test sentence is longer than `longest`, or that is more than the network takes.
    """

    name: str
    title: str
    space: SearchSpace
    vocabulary: Vocabulary
    text: Mapping[str, ParallelText]
    recipe: Recipe
    supernet_recipe: Recipe
    languages: tuple[str, str] = ("source", "target")
    bleu_tokenizer: str = "13a"
    beam: int = 4
    longest: int = 100
    pairs: Mapping[str, Pairs] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _refuse_name(self.name)
        missing = [side for side in SIDES if side not in self.text or not len(self.text[side])]
        if missing:
            raise ValueError(f"task {self.name}: no {', '.join(missing)} text; needed are {', '.join(SIDES)}")
        if not 1 <= self.longest <= MAX_LENGTH - 2:
            raise ValueError(f"task {self.name}: longest is {self.longest}; allowed are 1 to {MAX_LENGTH - 2}")
        object.__setattr__(self, "pairs", {side: self._pairs(side) for side in SIDES})

    @classmethod
    def from_text(
        cls,
        name: str,
        *,
        train: Text,
        valid: Text,
        test: Text,
        space: SearchSpace,
        recipe: Recipe,
        supernet_recipe: Recipe | None = None,
        subwords: int = 8000,
        **settings: Any,
    ) -> Task:
        """Make a task from text; its subwords are trained on the training side.

        Parameters
        ----------
        name : str
            Short name.
        train, valid, test : ParallelText or pair
            Source and target: two files, plain or ``.gz``, of one sentence per line, or two sequences of sentences.
        space : SearchSpace
            The architectures.
        recipe, supernet_recipe : Recipe
            How to train; a supernet as one architecture by default.
        subwords : int
            Most tokens of the vocabulary, which both languages share.
        **settings
            Other fields of `Task`.

        Returns
        -------
        Task

        Raises
        ------
        ValueError
            If files or sentences do not fit each other; see `llmpp_core.corpora` and `Task`.

        Examples
        --------
        >>> @register("ours.en-de")
        ... def ours():
        ...     text = {side: (f"{side}.en", f"{side}.de") for side in SIDES}
        ...     recipe = Recipe(updates=2000, batch_tokens=8192, learning_rate=1.5e-3, dropout=0.3)
        ...     return Task.from_text("ours.en-de", **text, space=SMALL, recipe=recipe, languages=("English", "German"))
        """
        _refuse_name(name)
        given = {"train": train, "valid": valid, "test": test}
        text = {side: as_parallel(value, f"{name} {side}") for side, value in given.items()}
        vocabulary = Vocabulary.subwords(chain(stream(text["train"].src), stream(text["train"].tgt)), subwords)
        settings = {"title": name, "recipe": recipe, "supernet_recipe": supernet_recipe or recipe, **settings}
        return cls(name=name, space=space, vocabulary=vocabulary, text=text, **settings)

    def _pairs(self, side: str) -> Pairs:
        given, mark = [list(stream(sentences)) for sentences in (self.text[side].src, self.text[side].tgt)], self.vocabulary.space_mark
        for which, sentences in zip(("source", "target"), given, strict=True):
            marked = next((i for i, sentence in enumerate(sentences, 1) if mark and mark in sentence), None)
            if marked is not None:
                raise ValueError(
                    f"task {self.name}: the {which} of {side} pair {marked:,} holds {mark!r} (U+{ord(mark):X}), by which the vocabulary "
                    "marks spaces; give plain text, not subwords"
                )
        src, tgt = map(self.vocabulary.encode, given)
        for which, tokens in (("source", src), ("target", tgt)):
            long = next((i for i, ids in enumerate(tokens, 1) if len(ids) > self.longest), None)
            if side != "train" and long is not None:
                raise ValueError(
                    f"task {self.name}: the {which} of {side} pair {long:,} has {len(tokens[long - 1])} tokens, more than {self.longest}; "
                    "raise `longest` or shorten it"
                )
        kept = [(a, b) for a, b in zip(src, tgt, strict=True) if max(len(a), len(b)) <= self.longest]
        return Pairs.from_tokens([a for a, _ in kept], [b for _, b in kept])

    def bleu(self, hypotheses: Sequence[Sequence[int]], side: str) -> float:
        """Return the BLEU of translations, rows of token identifiers, of a whole side."""
        # Both in the form that the vocabulary gives text: an accent may be written in two ways.
        references = self.vocabulary.normalise(stream(self.text[side].tgt))
        return float(self._metric().corpus_score(self.vocabulary.decode(hypotheses), [references]).score)

    def bleu_signature(self) -> str:
        """Return sacrebleu's signature of `bleu` (Post, 2018): case kept, one reference, exponential smoothing."""
        metric = self._metric()
        metric.corpus_score(["a"], [["a"]])  # the number of references is known only after a score
        return str(metric.get_signature())

    def _metric(self) -> sacrebleu.BLEU:
        return sacrebleu.BLEU(tokenize=self.bleu_tokenizer, force=self.bleu_tokenizer == "none")

    def prompt_task(self, examples: int = 5) -> PromptTask:
        """Return the task as prompts describe it, with short training pairs, the same each time, as examples."""
        train, vocab_size, qkv_dim = self.text["train"], len(self.vocabulary), self.space.qkv_dim

        def gflops(arch: Architecture) -> float:
            return count_flops(arch, vocab_size, qkv_dim=qkv_dim) / 1e9

        rows = np.random.default_rng(0).choice(len(train), min(5 * examples, len(train)), replace=False).tolist()
        pairs = sorted(((train.src[row], train.tgt[row]) for row in rows), key=lambda pair: len(pair[0]) + len(pair[1]))
        # Two significant digits of the cheapest architecture.
        decimals = max(1, 1 - math.floor(math.log10(gflops(self.space.smallest()))))
        cost = "the billions of floating-point operations of one forward pass over a sentence pair"
        return PromptTask(
            self.title,
            description=f"machine translation from {self.languages[0]} to {self.languages[1]} ({self.title})",
            metric="BLEU",
            metric_description="a percentage, on the validation set",
            low=0.0,
            high=100.0,
            examples=tuple(pairs[:examples]),
            efficiency=Efficiency(description=cost, value=gflops, decimals=decimals),
        )


def _refuse_name(name: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w .+-]*", name):
        raise ValueError(f"task {name!r}: a name of files; allowed are letters, digits and ' .+-_', first a letter or digit")


_FACTORIES: dict[str, Callable[[], Task]] = {}


def register(name: str) -> Callable[[Callable[[], Task]], Callable[[], Task]]:
    """Return a decorator that makes a function without arguments the maker of the task `name`; ValueError if the name is taken."""

    def add(factory: Callable[[], Task]) -> Callable[[], Task]:
        if name in _FACTORIES and _FACTORIES[name] is not factory:
            raise ValueError(f"there is a task {name!r} already; choose another name")
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
    text: dict[str, Any] = {side: multi30k(target, side) for side in SIDES}
    # Published text-only Transformers of 4 + 4 layers train for at most 8,000 updates of 2 x 4,096 tokens with dropout 0.3 and label
    # smoothing 0.1, on 10,000 joint subwords, and are read with beam 5 (Wu et al., 2021). 8,000 joint subwords lengthen sentences by
    # 2 to 4 % over 10,000 and save a fifth of the embedding, the largest tensor of a small network.
    recipe = Recipe(updates=3000, batch_tokens=12_000, learning_rate=1.5e-3, dropout=0.3)
    return Task.from_text(
        f"multi30k.en-{target}",
        title=f"Multi30k En-{target.capitalize()}",
        **text,
        space=SMALL,
        recipe=recipe,
        subwords=8000,
        languages=("English", LANGUAGES[target]),
        beam=5,
    )


def _multi30k_mini(target: str) -> Task:
    """Return the short captions of Multi30k: real text for a CPU."""
    text: dict[str, Any] = {side: multi30k(target, side).shorter(10, at_most=6000) for side in SIDES}
    recipe = Recipe(updates=1500, batch_tokens=1000, learning_rate=2e-3, dropout=0.1)
    return Task.from_text(
        f"multi30k-mini.en-{target}",
        title=f"Multi30k mini En-{target.capitalize()}",
        **text,
        space=TINY,
        recipe=recipe,
        subwords=2000,
        languages=("English", LANGUAGES[target]),
        beam=1,
        longest=60,
    )


@dataclass(frozen=True, eq=False)
class PreparedTask(Task):
    """A task whose training side is larger than memory; `text` holds a sample of it.

    Parameters
    ----------
    stored : Pairs
        The training pairs, on disk.
    """

    stored: Pairs = field(kw_only=True, repr=False)

    def _pairs(self, side: str) -> Pairs:
        return self.stored if side == "train" else super()._pairs(side)


def prepared_task(name: str, folder: Path) -> Task:
    """Return a WMT task from the folder that `preparation.prepare` made; raises ValueError if it is damaged or of another task."""
    manifest, vocabulary, text, pairs = load_prepared(folder)
    if manifest["task"] != name:
        raise ValueError(f"{folder}: prepared for {manifest['task']}, not for {name}")
    # HAT's files configs/wmt*/subtransformer/common.yml and supertransformer/space0.yml: 40,000 updates of 128 x 4,096 tokens, learning
    # rate 0.001 with 4,000 updates of warm-up, 10,000 for supernets. They clip no gradients and also drop out a tenth of the attention.
    recipe = Recipe(updates=40_000, batch_tokens=4096, accumulate=128, learning_rate=1e-3, warmup=0.1, dropout=0.3)
    return PreparedTask(
        name=name,
        title=f"WMT'{name[3:5]} En-{name[-2:].capitalize()}",
        space=HAT_WMT,
        vocabulary=vocabulary,
        text=text,
        recipe=recipe,
        supernet_recipe=replace(recipe, warmup=0.25),
        languages=("English", LANGUAGES[name[-2:]]),
        longest=250,
        stored=pairs,
    )


def _wmt(name: str) -> Task:
    folder = prepared_folder(name)
    if not (folder / "manifest.json").exists():
        raise SourceError(f"{name} is not prepared; `python -m llmpp_core prepare {name}` does it, in hours, and resumes")
    return prepared_task(name, folder)


for _target in ("de", "fr", "cs"):
    register(f"multi30k.en-{_target}")(partial(_multi30k, _target))
    register(f"multi30k-mini.en-{_target}")(partial(_multi30k_mini, _target))
for _name in SUBWORDS:
    register(_name)(partial(_wmt, _name))
