"""The made-up languages: the same every time, unambiguous, and true to their grammar."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmpp_core.tasks.registry import load_task
from llmpp_core.text.synthetic import Clause, Language, Phrase


@pytest.fixture(scope="module")
def language() -> Language:
    return Language()


def test_sentences_depend_on_the_seeds_alone() -> None:
    first, again = (Language(3).pairs(50, np.random.default_rng(7)) for _ in range(2))
    assert first == again
    assert Language(3).pairs(20, np.random.default_rng(7)) == (first[0][:20], first[1][:20])
    assert Language(3).pairs(50, np.random.default_rng(8)) != first
    assert Language(4).pairs(50, np.random.default_rng(7)) != first


def test_length_is_limited_on_both_sides(language: Language) -> None:
    for sentences in language.pairs(300, np.random.default_rng(0), longest=12):
        assert max(len(sentence.replace("-", " -").split()) for sentence in sentences) <= 12


def test_the_sides_of_the_task_share_words_and_no_sentence() -> None:
    task = load_task("synthetic")
    train, valid, test = (set(task.text[side].src) for side in ("train", "valid", "test"))
    assert len(train | valid | test) == len(train) + len(valid) + len(test)
    pairs = {pair for text in task.text.values() for pair in zip(text.src, text.tgt, strict=True)}
    assert len(pairs) == len({src for src, _ in pairs}), "every source has one translation"
    known, seen = ({token for row in task.vocabulary.encode(task.text[side].tgt) for token in row} for side in ("train", "test"))
    assert seen <= known


def test_words_differ_between_the_languages(language: Language) -> None:
    sides = language.pairs(500, np.random.default_rng(0))
    words = [{part for sentence in side for part in sentence.replace("-", " ").split() if len(part) == 4} for side in sides]
    assert not words[0] & words[1]


def agreement(language: Language, phrase: Phrase) -> str:
    return language.endings["agreement"][2 * phrase.noun.noun_class + phrase.plural]


def test_verb_is_last_and_agrees_and_case_marks_the_object(language: Language) -> None:
    rng = np.random.default_rng(5)
    for clause in (language._clause(rng, depth=0) for _ in range(200)):
        assert clause.subject is not None
        verb = language._target(clause, None)[-1]
        assert verb.endswith(language.endings["tense"][clause.past] + agreement(language, clause.subject))
        assert ("-nu" in verb) == clause.negated
        if clause.object is not None:
            assert language._target_phrase(clause.object, case=1)[-1].endswith(language.endings["case"][1])


def test_object_decides_the_verb(language: Language) -> None:
    animate, other = (next(noun for noun in language.nouns if noun.animate is kind) for kind in (True, False))
    subject = Phrase(animate, plural=False, definite=True)
    clauses = [Clause(3, False, False, subject, Phrase(noun, plural=False, definite=True)) for noun in (animate, other)]
    verbs = [language._target(clause, None)[-1][:4] for clause in clauses]
    assert verbs == [language.words["verb, animate object"][3], language.words["verb, other object"][3]]
    assert verbs[0] != verbs[1]


def test_number_of_the_subject_shows_in_every_word_that_agrees(language: Language) -> None:
    subject = Phrase(language.nouns[0], plural=False, definite=True, adjectives=[1, 2])
    singular, plural = (language._target(Clause(0, False, False, replace(subject, plural=many)), None) for many in (False, True))
    assert [a == b for a, b in zip(singular, plural, strict=True)] == [True, False, False, False]  # noun; two adjectives; verb


def test_noun_of_noun_is_one_word(language: Language) -> None:
    phrase = Phrase(language.nouns[0], plural=False, definite=False, modifier=language.nouns[1])
    (word,) = language._target_phrase(phrase, case=0)
    assert word.startswith(language.nouns[1].target + "-")
    assert f"-{language.nouns[0].target}-" in word
    assert language._source_phrase(phrase)[2:] == ["do", language.nouns[1].source]


def test_relative_clause_stands_before_the_noun_and_agrees_with_it(language: Language) -> None:
    phrase = Phrase(language.nouns[2], plural=True, definite=True, clause=Clause(5, True, False, None))
    words = language._target_phrase(phrase, case=0)
    assert words[0] == language.words["verb, other object"][5] + language.endings["tense"][1] + agreement(language, phrase)
    assert words[-1].startswith(language.nouns[2].target)
    source = language._source_phrase(phrase)
    assert source.index("ke") > source.index(language.nouns[2].source + "-s")
