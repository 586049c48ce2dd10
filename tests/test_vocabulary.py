"""Vocabularies: what goes in comes out, in every process the same."""

from __future__ import annotations

import pickle
import string
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from llmpp_core.text.special_tokens import BOS, EOS, PAD, UNK
from llmpp_core.text.vocabulary import Vocabulary

SENTENCES = [
    "A man, in a T-shirt (red), isn't running...",
    "L'homme à l'écharpe dit : « Où est-ce ? »",
    "Žluťoučký kůň „pěl“ ďábelské ódy – 3.5 % z 1,000!",
    "Zwei MÄNNER stehen am Straßenrand/Bürgersteig; 50€ & mehr.",
    "e-mail@example.org #1 *bold* [x] {y} ~z^2 \\ \"quoted\" 'single'",
]
ALPHABET = string.ascii_letters + string.digits + string.punctuation + "äéñßŽ„“«»–’"


def plain(text: str) -> str:
    """The text as decoding gives it back: Unicode's composed form, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@pytest.fixture(scope="module")
def subwords() -> Vocabulary:
    return Vocabulary.subwords([*SENTENCES, *ALPHABET], 400)


def test_special_tokens_come_first_and_size_is_a_limit(subwords: Vocabulary) -> None:
    assert [subwords.tokenizer.id_to_token(i) for i in (PAD, BOS, EOS, UNK)] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert len(Vocabulary.subwords(SENTENCES * 3, 150)) == 150
    assert len(Vocabulary.subwords(["a b"], 150)) < 20


TRICKY = ["  two  spaces ", "no\u00a0break, thin\u2009space", "tab\there\r", "cafe\u0301 nin\u0303o", "(a)(b) , c ,d", "'s 's'", "....", ""]


@pytest.mark.parametrize("text", [*SENTENCES, *TRICKY, "the <pad> and the <eos> of <bos>"])
def test_text_comes_back_normalised(subwords: Vocabulary, text: str) -> None:
    (ids,) = subwords.encode([text])
    assert not {PAD, BOS, EOS} & set(ids)
    assert subwords.decode([ids]) == subwords.decode([[BOS, *ids, EOS, PAD, PAD]]) == subwords.normalise([text]) == [plain(text)]


def test_unknown_characters_are_left_out(subwords: Vocabulary) -> None:
    ids = subwords.encode(["A man ☃ runs漢字."])
    assert ids[0].count(UNK) == 3
    assert subwords.decode(ids) == ["A man runs."]


def test_training_is_the_same_in_every_process() -> None:
    text = [" ".join(sentence.split()[i:]) for sentence in SENTENCES for i in range(6)]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        elsewhere = pool.submit(Vocabulary.subwords, text, 200).result(), pool.submit(Vocabulary.morphemes, text).result()
    here = Vocabulary.subwords(text, 200), Vocabulary.morphemes(text)
    assert [vocabulary.to_json() for vocabulary in elsewhere] == [vocabulary.to_json() for vocabulary in here]


def test_copies_encode_alike(subwords: Vocabulary) -> None:
    copied, text = pickle.loads(pickle.dumps(subwords)), [*SENTENCES, "with <pad> inside"]
    assert copied.encode(text) == subwords.encode(text)
    assert copied.decode(copied.encode(text)) == text


@pytest.mark.parametrize("text", ["", "{}", "no json", Vocabulary.subwords(["a"], 9).to_json().replace("<eos>", "<end>")])
def test_other_text_is_no_vocabulary(text: str) -> None:
    with pytest.raises(ValueError, match="not a vocabulary"):
        Vocabulary.from_json(text)


def test_morphemes_part_words_before_hyphens() -> None:
    text = ["lo pese-s pute-ti", "baxu-gi-ju jadu-fe-zi"]
    vocabulary = Vocabulary.morphemes(text)
    ids = vocabulary.encode(text)
    assert [[vocabulary.tokenizer.id_to_token(i) for i in row] for row in ids] == [
        ["lo", "pese", "-s", "pute", "-ti"],
        ["baxu", "-gi", "-ju", "jadu", "-fe", "-zi"],
    ]
    assert vocabulary.decode(ids) == text
    assert (vocabulary.encode([]), vocabulary.decode([[]])) == ([], [""])
