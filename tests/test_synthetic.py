"""The made-up languages: the same every time, unambiguous, and true to their grammar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from llmpp_core.tasks.registry import load_task
from llmpp_core.tasks.task import Task
from llmpp_core.text.synthetic import Clause, Language, Phrase


@pytest.fixture(scope="module")
def language() -> Language:
    return Language()


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("synthetic")


def test_sentences_depend_on_the_seeds_alone() -> None:
    first, again = (Language(3).pairs(50, np.random.default_rng(7)) for _ in range(2))
    assert first == again
    assert Language(3).pairs(50, np.random.default_rng(8)) != first
    assert Language(4).pairs(50, np.random.default_rng(7)) != first


def test_more_sentences_begin_with_fewer(language: Language) -> None:
    few, more = (language.pairs(n, np.random.default_rng(0)) for n in (20, 40))
    assert (more[0][:20], more[1][:20]) == few


def test_length_is_limited_on_both_sides(language: Language) -> None:
    for sentences in language.pairs(300, np.random.default_rng(0), longest=12):
        assert max(len(sentence.replace("-", " -").split()) for sentence in sentences) <= 12


def test_no_held_out_sentence_was_trained_on(task: Task) -> None:
    train, valid, test = (set(task.text[side].src) for side in ("train", "valid", "test"))
    assert not train & valid
    assert not train & test
    assert not valid & test


def test_every_source_has_one_translation(task: Task) -> None:
    translations: dict[str, set[str]] = {}
    for text in task.text.values():
        for src, tgt in zip(text.src, text.tgt, strict=True):
            translations.setdefault(src, set()).add(tgt)
    assert max(map(len, translations.values())) == 1


def test_held_out_sentences_hold_no_unknown_word(task: Task) -> None:
    train, test = ({token for row in task.vocabulary.encode(task.text[side].tgt) for token in row} for side in ("train", "test"))
    assert test <= train


def test_words_differ_between_the_languages(language: Language) -> None:
    sources, targets = language.pairs(500, np.random.default_rng(0))
    words = [{part for sentence in side for part in sentence.replace("-", " ").split() if len(part) == 4} for side in (sources, targets)]
    assert not words[0] & words[1]


def clauses(language: Language, n: int = 200) -> Iterator[Clause]:
    rng = np.random.default_rng(5)
    for _ in range(n):
        yield language._clause(rng, depth=0)


def agreement(language: Language, phrase: Phrase) -> str:
    return language.endings["agreement"][2 * phrase.noun.noun_class + phrase.plural]


def test_verb_is_last_and_agrees_with_its_subject(language: Language) -> None:
    for clause in clauses(language):
        assert clause.subject is not None
        verb = language._target(clause, None)[-1]
        assert verb.endswith(language.endings["tense"][clause.past] + agreement(language, clause.subject))
        assert ("-nu" in verb) == clause.negated


def test_object_decides_the_verb(language: Language) -> None:
    animate, other = (next(noun for noun in language.nouns if noun.animate is kind) for kind in (True, False))
    subject = Phrase(animate, plural=False, definite=True)
    verbs = [
        language._target(Clause(3, False, False, subject, Phrase(noun, plural=False, definite=True)), None)[-1][:4]
        for noun in (animate, other)
    ]
    assert verbs == [language.words["verb, animate object"][3], language.words["verb, other object"][3]]
    assert verbs[0] != verbs[1]


def test_number_of_the_subject_shows_in_every_word_that_agrees(language: Language) -> None:
    subject = Phrase(language.nouns[0], plural=False, definite=True, adjectives=[1, 2])
    singular, plural = (language._target(Clause(0, False, False, replace(subject, plural=many)), None) for many in (False, True))
    assert [a == b for a, b in zip(singular, plural, strict=True)] == [True, False, False, False]  # noun; two adjectives; verb


def test_case_marks_the_last_word_of_a_phrase(language: Language) -> None:
    for clause in clauses(language):
        if clause.object is not None:
            assert language._target_phrase(clause.object, case=1)[-1].endswith(language.endings["case"][1])


def test_noun_of_noun_is_one_word(language: Language) -> None:
    phrase = Phrase(language.nouns[0], plural=False, definite=False, modifier=language.nouns[1])
    (word,) = language._target_phrase(phrase, case=0)
    assert word.startswith(language.nouns[1].target + "-")
    assert f"-{language.nouns[0].target}-" in word
    assert language._source_phrase(phrase)[2:] == ["do", language.nouns[1].source]


def test_relative_clause_stands_before_the_noun_and_agrees_with_it(language: Language) -> None:
    relative = Clause(5, True, False, None)
    phrase = Phrase(language.nouns[2], plural=True, definite=True, clause=relative)
    words = language._target_phrase(phrase, case=0)
    assert words[0] == language.words["verb, other object"][5] + language.endings["tense"][1] + agreement(language, phrase)
    assert words[-1].startswith(language.nouns[2].target)
    source = language._source_phrase(phrase)
    assert source.index("ke") > source.index(language.nouns[2].source + "-s")
