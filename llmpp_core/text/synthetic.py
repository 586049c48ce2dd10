"""A made-up pair of languages, to measure architectures on a task that is in no corpus.

The source puts the verb second and modifiers after the noun. The target puts verbs last and clauses before the noun they
describe, inflects nouns, adjectives and verbs for class, number, case and tense, writes "noun of noun" as one compound, and has
two verbs where the source has one, depending on what the object is. Hyphens part the morphemes of a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

#: Sizes of the lexicon.
NOUNS, VERBS, ADJECTIVES, ADVERBS, PREPOSITIONS = 120, 50, 40, 12, 6
_CLASSES = 3


@dataclass(frozen=True)
class Noun:
    """A noun of both languages; its class decides agreement, its animacy which verb it goes with."""

    source: str
    target: str
    noun_class: int
    animate: bool


@dataclass(frozen=True)
class Phrase:
    """A noun with what belongs to it."""

    noun: Noun
    plural: bool
    definite: bool
    adjectives: Sequence[int] = ()
    modifier: Noun | None = None
    place: tuple[int, Phrase] | None = None
    clause: Clause | None = None


@dataclass(frozen=True)
class Clause:
    """A verb with its subject (absent in a relative clause, where it is the noun described), object and adjuncts."""

    verb: int
    past: bool
    negated: bool
    subject: Phrase | None
    object: Phrase | None = None
    adverb: int | None = None


@dataclass(frozen=True)
class Language:
    """The lexicon and the grammars of both sides."""

    #: Draws the words; the same seed gives the same languages.
    seed: int = 0
    nouns: list[Noun] = field(init=False, repr=False)
    words: dict[str, list[str]] = field(init=False, repr=False)
    endings: dict[str, list[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 1])
        stems = _stems(rng, "ptkmnsl")
        others = _stems(rng, "bdgvzrxfj")
        nouns = [Noun(next(stems), next(others), int(rng.integers(_CLASSES)), bool(rng.random() < 0.5)) for _ in range(NOUNS)]
        words = {
            "verb": [next(stems) for _ in range(VERBS)],
            "adjective": [next(stems) for _ in range(ADJECTIVES)],
            "adverb": [next(stems) for _ in range(ADVERBS)],
            "preposition": [next(stems) for _ in range(PREPOSITIONS)],
            "verb, animate object": [next(others) for _ in range(VERBS)],
            "verb, other object": [next(others) for _ in range(VERBS)],
            "adjective'": [next(others) for _ in range(ADJECTIVES)],
            "adverb'": [next(others) for _ in range(ADVERBS)],
            "postposition": [next(others) for _ in range(PREPOSITIONS)],
        }
        # One ending per class and number (agreement), class and definiteness, case, tense, and class (link of compounds).
        syllables = [f"-{c}{v}" for c in "bdgvzrxfj" for v in "aeiou"]
        drawn = iter(rng.permutation(syllables).tolist())
        endings = {
            name: [next(drawn) for _ in range(n)] for name, n in (("agreement", 6), ("article", 6), ("case", 3), ("tense", 2), ("link", 3))
        }
        vars(self).update(nouns=nouns, words=words, endings=endings)

    def pairs(self, n: int, rng: np.random.Generator, longest: int = 40, without: Iterable[str] = ()) -> tuple[list[str], list[str]]:
        """Draw source and target of `n` pairs, none with more than `longest` morphemes on a side, none whose source is in `without`."""
        known, pairs = set(without), list[tuple[str, str]]()
        while len(pairs) < n:
            clause = self._clause(rng, depth=0)
            pair = " ".join(self._source(clause)), " ".join(self._target(clause, None))
            if all(side.count(" ") + side.count("-") < longest for side in pair) and pair[0] not in known:
                pairs.append(pair)
        return [source for source, _ in pairs], [target for _, target in pairs]

    def _clause(self, rng: np.random.Generator, depth: int, relative: bool = False) -> Clause:
        transitive = rng.random() < 0.75
        return Clause(
            verb=_zipf(rng, VERBS),
            past=bool(rng.random() < 0.5),
            negated=bool(rng.random() < 0.2),
            subject=None if relative else self._phrase(rng, depth),
            object=self._phrase(rng, depth) if transitive else None,
            adverb=_zipf(rng, ADVERBS) if rng.random() < 0.3 else None,
        )

    def _phrase(self, rng: np.random.Generator, depth: int) -> Phrase:
        room = depth < 2
        return Phrase(
            noun=self.nouns[_zipf(rng, NOUNS)],
            plural=bool(rng.random() < 0.4),
            definite=bool(rng.random() < 0.5),
            adjectives=[_zipf(rng, ADJECTIVES) for _ in range(int(rng.choice(3, p=[0.5, 0.35, 0.15])))],
            modifier=self.nouns[_zipf(rng, NOUNS)] if rng.random() < 0.25 else None,
            place=(int(rng.integers(PREPOSITIONS)), self._phrase(rng, depth + 1)) if room and rng.random() < 0.2 else None,
            clause=self._clause(rng, depth + 1, relative=True) if room and rng.random() < 0.25 else None,
        )

    def _source(self, clause: Clause) -> list[str]:
        words = [*self._source_phrase(clause.subject)] if clause.subject else []
        words += [*(["ne"] if clause.negated else []), self.words["verb"][clause.verb] + ("-ti" if clause.past else "")]
        words += self._source_phrase(clause.object) if clause.object else []
        return words + ([self.words["adverb"][clause.adverb]] if clause.adverb is not None else [])

    def _source_phrase(self, phrase: Phrase) -> list[str]:
        words = ["lo" if phrase.definite else "un", phrase.noun.source + ("-s" if phrase.plural else "")]
        words += ["do", phrase.modifier.source] if phrase.modifier else []
        words += [self.words["adjective"][a] for a in phrase.adjectives]
        # The closing word and this order leave no doubt about what belongs to what.
        words += ["ke", *self._source(phrase.clause), "ko"] if phrase.clause else []
        return words + ([self.words["preposition"][phrase.place[0]], *self._source_phrase(phrase.place[1])] if phrase.place else [])

    def _target(self, clause: Clause, head: Phrase | None) -> list[str]:
        """Verb last; it agrees with its subject, in a relative clause with the noun described."""
        subject = clause.subject or head
        assert subject is not None
        words = self._target_phrase(clause.subject, case=0) if clause.subject else []
        words += self._target_phrase(clause.object, case=1) if clause.object else []
        words += [self.words["adverb'"][clause.adverb]] if clause.adverb is not None else []
        kind = "verb, animate object" if clause.object and clause.object.noun.animate else "verb, other object"
        verb = self.words[kind][clause.verb] + ("-nu" if clause.negated else "")
        return [*words, verb + self.endings["tense"][clause.past] + self._agreement(subject)]

    def _target_phrase(self, phrase: Phrase, case: int) -> list[str]:
        words = self._target(phrase.clause, phrase) if phrase.clause else []
        if phrase.place:
            words += [*self._target_phrase(phrase.place[1], case=2), self.words["postposition"][phrase.place[0]]]
        compound = phrase.modifier.target + self.endings["link"][phrase.noun.noun_class] + "-" if phrase.modifier else ""
        article = self.endings["article"][2 * phrase.noun.noun_class + phrase.definite]
        group = [compound + phrase.noun.target + article]
        group += [self.words["adjective'"][a] + self._agreement(phrase) for a in phrase.adjectives]
        group[-1] += self.endings["case"][case]
        return words + group

    def _agreement(self, phrase: Phrase) -> str:
        return self.endings["agreement"][2 * phrase.noun.noun_class + phrase.plural]


def _stems(rng: np.random.Generator, consonants: str) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        stem = "".join(str(rng.choice(list(letters))) for letters in (consonants, "aeiou") * 2)
        if stem not in seen:
            seen.add(stem)
            yield stem


def _zipf(rng: np.random.Generator, n: int) -> int:
    """Draw a rank below n, the frequent words first, as in natural text but flatter."""
    return int(n * rng.random() ** 2)
