"""Translation tasks: sentence pairs, their vocabulary, the search space that fits them and how to train on them.

`load_task` makes the built-in ones by name; `register` adds one of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

import numpy as np
import sacrebleu

from llmpp_core.batches import Pairs
from llmpp_core.space import TINY, SearchSpace
from llmpp_core.synthetic import Language
from llmpp_core.training import Recipe
from llmpp_core.vocabulary import Vocabulary

#: The three sides of a corpus.
SIDES = ("train", "valid", "test")


@dataclass(frozen=True)
class ParallelText:
    """Sentences and their translations, in the same order.

    Raises
    ------
    ValueError
        If the sides differ in length or a sentence is empty.
    """

    src: Sequence[str]
    tgt: Sequence[str]
    name: str = "text"

    def __post_init__(self) -> None:
        if len(self.src) != len(self.tgt):
            raise ValueError(f"{self.name}: {len(self.src):,} source and {len(self.tgt):,} target sentences; every line needs its translation")
        for side, sentences in (("source", self.src), ("target", self.tgt)):
            empty = next((i for i, sentence in enumerate(sentences, 1) if not sentence.strip()), None)
            if empty is not None:
                raise ValueError(f"{self.name}: the {side} of pair {empty:,} is empty; remove the pair")

    def __len__(self) -> int:
        return len(self.src)


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
        Most tokens of a sentence, without markers, on either side. Longer training pairs are left out.

    Raises
    ------
    ValueError
        If a side is missing, or a validation or test sentence is longer than `longest`.
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
        missing = [side for side in SIDES if side not in self.text]
        if missing:
            raise ValueError(f"task {self.name}: no {', '.join(missing)} text; needed are {', '.join(SIDES)}")
        object.__setattr__(self, "pairs", MappingProxyType({side: self._pairs(side) for side in SIDES}))

    def _pairs(self, side: str) -> Pairs:
        src, tgt = self.vocabulary.encode(self.text[side].src), self.vocabulary.encode(self.text[side].tgt)
        fits = [max(len(a), len(b)) <= self.longest for a, b in zip(src, tgt, strict=True)]
        if side != "train" and not all(fits):
            raise ValueError(
                f"task {self.name}: {side} pair {fits.index(False) + 1:,} has more than {self.longest} tokens; raise `longest` or shorten it"
            )
        return Pairs.from_tokens(*([ids for ids, fit in zip(s, fits, strict=True) if fit] for s in (src, tgt)))

    def bleu(self, hypotheses: Sequence[Sequence[int]], side: str) -> float:
        """Return the BLEU of translations, rows of token identifiers, of a whole side."""
        metric = sacrebleu.BLEU(tokenize=self.bleu_tokenizer, force=self.bleu_tokenizer == "none")
        return float(metric.corpus_score(self.vocabulary.decode(hypotheses), [list(self.text[side].tgt)]).score)


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
    """Make the task `name`, once per process; ValueError if there is none of that name."""
    if name not in _FACTORIES:
        raise ValueError(f"unknown task {name!r}; known are {', '.join(task_names())}")
    return _FACTORIES[name]()


@register("synthetic")
def _synthetic() -> Task:
    language, text = Language(), {}
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
        bleu_tokenizer="none",
        beam=1,
        longest=40,
    )
