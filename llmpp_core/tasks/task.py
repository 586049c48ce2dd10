"""Translation tasks: sentence pairs, their vocabulary, the search space that fits them and how to train on them.

`load_task` makes the built-in ones by name; `Task.from_text` makes one of your own, and `register` gives it a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu

from llmpp_core.llm.prompts import Efficiency, PromptTask, two_digits
from llmpp_core.nets.training import Recipe
from llmpp_core.nets.transformer import MAX_LENGTH
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_flops
from llmpp_core.space.search_space import SearchSpace
from llmpp_core.text.batches import Pairs
from llmpp_core.text.corpora import SIDES, ParallelText, as_parallel
from llmpp_core.text.vocabulary import Vocabulary

#: What a side may be given as: parallel text, two files, or two sequences of sentences.
Text = ParallelText | tuple[str | Path, str | Path] | tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True, eq=False)
class Task:
    """A translation task.

    Raises
    ------
    ValueError
        If the name is no name for files, a side is missing or empty, a sentence holds the mark that the vocabulary has for spaces, a
        validation or test sentence is longer than `longest`, that is more than the network takes, or BLEU could not be measured.
    """

    #: Short name, that of its files in results/.
    name: str
    #: Name in tables and figures.
    title: str
    #: The architectures that make sense for it.
    space: SearchSpace
    #: The vocabulary of both languages.
    vocabulary: Vocabulary
    #: The sides train, valid and test.
    text: Mapping[str, ParallelText]
    #: How to train one architecture, and a supernet.
    recipe: Recipe
    supernet_recipe: Recipe
    #: Names of source and target language.
    languages: tuple[str, str] = ("source", "target")
    #: sacrebleu's tokenizer: "13a" for natural text, "none" for text that is tokens already.
    bleu_tokenizer: str = "13a"
    #: Beam width with which BLEU is measured.
    beam: int = 4
    #: Most tokens of a sentence, without markers, on either side. Longer training pairs are left out of `pairs`.
    longest: int = 100
    #: The training pairs, if they are on disk since they are larger than memory; `text` then holds a sample of them.
    stored: Pairs | None = field(default=None, repr=False)
    #: The sides as tokens.
    pairs: Mapping[str, Pairs] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w .+-]*", self.name):
            allowed = "letters, digits and ' .+-_', first a letter or digit"
            raise ValueError(f"task {self.name!r}: a name of files; allowed are {allowed}")
        missing = [side for side in SIDES if side not in self.text or not len(self.text[side])]
        if missing:
            raise ValueError(f"task {self.name}: no {', '.join(missing)} text; needed are {', '.join(SIDES)}")
        if not 1 <= self.longest <= MAX_LENGTH - 2:
            raise ValueError(f"task {self.name}: longest is {self.longest}; allowed are 1 to {MAX_LENGTH - 2}")
        # Or it would be found out after the training.
        if not isinstance(self.beam, (int, np.integer)) or self.beam < 1:
            raise ValueError(f"task {self.name}: beam is {self.beam!r}; expected an integer from 1")
        if self.bleu_tokenizer not in sacrebleu.BLEU.TOKENIZERS:
            known = ", ".join(sacrebleu.BLEU.TOKENIZERS)
            raise ValueError(f"task {self.name}: bleu_tokenizer is {self.bleu_tokenizer!r}; sacrebleu has {known}")
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
            If files or sentences do not fit each other; see `llmpp_core.text.corpora` and `Task`.

        Examples
        --------
        >>> @register("ours.en-de")
        ... def ours():
        ...     text = {side: (f"{side}.en", f"{side}.de") for side in SIDES}
        ...     recipe = Recipe(updates=2000, batch_tokens=8192, learning_rate=1.5e-3, dropout=0.3)
        ...     return Task.from_text("ours.en-de", **text, space=SMALL, recipe=recipe, languages=("English", "German"))
        """
        given = {"train": train, "valid": valid, "test": test}
        text = {side: as_parallel(value, f"{name} {side}") for side, value in given.items()}
        vocabulary = Vocabulary.subwords(chain(text["train"].src, text["train"].tgt), subwords)
        settings = {"title": name, "recipe": recipe, "supernet_recipe": supernet_recipe or recipe, **settings}
        return cls(name=name, space=space, vocabulary=vocabulary, text=text, **settings)

    def _pairs(self, side: str) -> Pairs:
        if side == "train" and self.stored is not None:
            return self.stored
        mark, tokens = self.vocabulary.space_mark, []
        for which, given in (("source", self.text[side].src), ("target", self.text[side].tgt)):
            sentences, pair = list(given), f"task {self.name}: the {which} of {side} pair"
            marked = next((i for i, sentence in enumerate(sentences, 1) if mark and mark in sentence), None)
            if marked is not None:
                what = f"{mark!r} (U+{ord(mark):X}), by which the vocabulary marks spaces"
                raise ValueError(f"{pair} {marked:,} holds {what}; give plain text, not subwords")
            tokens.append(self.vocabulary.encode(sentences))
            lengths = [len(ids) for ids in tokens[-1]]
            if side != "train" and max(lengths) > self.longest:
                long = next(i for i, length in enumerate(lengths) if length > self.longest)
                raise ValueError(f"{pair} {long + 1:,} has {lengths[long]} tokens, more than {self.longest}; raise `longest` or shorten it")
        kept = [pair for pair in zip(*tokens, strict=True) if max(map(len, pair)) <= self.longest]
        return Pairs.from_tokens([a for a, _ in kept], [b for _, b in kept])

    def bleu(self, hypotheses: Sequence[Sequence[int]], side: str) -> float:
        """Return the BLEU of translations, rows of token identifiers, of a whole side."""
        # Both in the form that the vocabulary gives text: an accent may be written in two ways.
        references = self.vocabulary.normalise(self.text[side].tgt)
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
        decimals = max(1, two_digits(gflops(self.space.smallest())))
        cost = "the billions of floating-point operations of one forward pass over a sentence pair"
        return PromptTask(
            self.title,
            description=f"machine translation from {self.languages[0]} to {self.languages[1]} ({self.title})",
            metric="BLEU",
            metric_description="a percentage, on the validation set",
            low=0.0,
            high=100.0,
            examples=tuple(pairs[:examples]),
            space=self.space,
            efficiency=Efficiency("GFLOPS", cost, gflops, decimals),
        )
