"""Translation: the cache changes nothing, greedy is the plain loop, and beam search finds what trying everything finds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from small_nets import MICRO, VOCAB, new_network, reversed_pairs

from llmpp_core.nets import decoding
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.training import Recipe, train
from llmpp_core.nets.transformer import Cache, Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import TINY, SearchSpace
from llmpp_core.text.batches import Pairs
from llmpp_core.text.vocabulary import BOS, EOS, PAD

ARCHS = MICRO.sample(6, np.random.default_rng(0))


@pytest.fixture(scope="module")
def trained() -> Transformer:
    """Return a network that has learned most of its task, so that it ends its sentences."""
    model = Transformer(MICRO.largest(), MICRO, VOCAB)
    train(model, reversed_pairs(400, seed=1, longest=4), Recipe(updates=200, batch_tokens=400, learning_rate=0.01, dropout=0), seed=0)
    return model


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- token by token ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [MICRO, TINY], ids=lambda space: space.name)
def test_a_step_at_a_time_gives_the_logits_of_all_at_once(space: SearchSpace) -> None:
    batch = reversed_pairs(4, seed=0, longest=9).batch(np.arange(4))
    assert (batch.src == PAD).any()
    for arch in space.sample(20, np.random.default_rng(1)):
        model = new_network(arch, space).double()
        expected = model(batch.src, batch.tgt)
        caches = model.start(model.encode(batch.src))
        for position in range(batch.tgt.shape[1]):
            logits, caches = model.step(batch.tgt[:, position], position, caches)
            torch.testing.assert_close(logits, expected[:, position], rtol=1e-9, atol=1e-9)


def test_hypotheses_can_change_places_between_steps() -> None:
    model = new_network(MICRO.largest()).double()
    src = torch.tensor([[4, 5, 6, EOS], [7, 8, EOS, PAD]])
    caches = model.start(model.encode(src))
    _, caches = model.step(torch.tensor([BOS, BOS]), 0, caches)
    caches = [Cache._make(None if x is None else x[[1, 1, 0]] for x in cache) for cache in caches]
    found, _ = model.step(torch.tensor([9, 10, 11]), 1, caches)
    expected = model(src[[1, 1, 0]], torch.tensor([[BOS, 9], [BOS, 10], [BOS, 11]]))[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# --- greedy -----------------------------------------------------------------------------------------------------------


def greedily(model: Transformer, source: list[int]) -> list[int]:
    """Translate one sentence by the plain loop, the whole network run again for every token."""
    tokens = [BOS]
    for _ in range(2 * len(source) + 19):
        logits = model(torch.tensor([source]), torch.tensor([tokens]))[0, -1]
        logits[[PAD, BOS]] = -torch.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == EOS:
            return tokens[1:-1]
    return tokens[1:-1]


def sources(pairs: Pairs) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(pairs.src, pairs.src_lengths, strict=True)]


@pytest.mark.parametrize("arch", ARCHS, ids=range(6))
def test_greedy_search_is_the_plain_loop(arch: Architecture) -> None:
    model, pairs = new_network(arch), reversed_pairs(10, seed=2)
    # One sentence at a time, since untrained networks go on up to the limit, which depends on the longest source of a batch.
    assert translate(model, pairs, batch_tokens=1) == [greedily(model, source) for source in sources(pairs)]


def test_greedy_search_is_the_plain_loop_for_a_network_that_ends_its_sentences(trained: Transformer) -> None:
    pairs = reversed_pairs(40, seed=2, longest=4)
    found = translate(trained, pairs)
    assert found == [greedily(trained, source) for source in sources(pairs)]
    assert max(map(len, found)) < 10


@pytest.mark.parametrize("beam", [1, 3])
def test_translations_keep_their_order_and_do_not_depend_on_company(trained: Transformer, beam: int) -> None:
    pairs = reversed_pairs(60, seed=3, longest=4)
    together = translate(trained, pairs, beam=beam)
    assert len({tuple(ids) for ids in together}) > 30
    for batch_tokens in (1, 40, 300):
        assert translate(trained, pairs, beam=beam, batch_tokens=batch_tokens) == together
    order = np.random.default_rng(0).permutation(60)
    mixed = Pairs(pairs.src[order], pairs.tgt[order], pairs.src_lengths[order], pairs.tgt_lengths[order])
    assert translate(trained, mixed, beam=beam) == [together[i] for i in order]


def test_targets_are_not_read_and_nothing_is_left_of_the_markers(trained: Transformer) -> None:
    pairs = reversed_pairs(30, seed=4, longest=4)
    blind = Pairs(pairs.src, torch.full_like(pairs.tgt, 5), pairs.src_lengths, np.full(30, 3))
    found = translate(trained, blind, beam=2)
    assert found == translate(trained, pairs, beam=2)
    assert not {PAD, BOS, EOS} & {token for ids in found for token in ids}
    assert translate(trained, reversed_pairs(0, seed=0)) == []


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model: expected a network in evaluation mode; call model\.eval\(\)"):
        translate(new_network(ARCHS[0]).train(), reversed_pairs(2, seed=0))


# --- beam search ------------------------------------------------------------------------------------------------------


def score(model: Transformer, source: list[int], tokens: list[int], length_penalty: float = 1.0) -> float:
    """Return the log-probability of a translation and its end, per token to the power `length_penalty`."""
    logits = model(torch.tensor([source]), torch.tensor([[BOS, *tokens]]))[0]
    logits[:, [PAD, BOS]] = -torch.inf
    chosen = logits.log_softmax(-1)[range(len(tokens) + 1), [*tokens, EOS]]
    return float(chosen.sum()) / (len(tokens) + 1) ** length_penalty


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
def test_a_wide_beam_finds_the_best_of_all_translations(length_penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # With room for three tokens of three kinds there are 40 translations.
    monkeypatch.setattr(decoding, "MAX_LENGTH", 5)
    for seed in range(8):
        arch = MICRO.sample(1, np.random.default_rng(seed))[0]
        model = Transformer(arch, MICRO, vocab_size=6)
        model.initialise(torch.Generator().manual_seed(seed))
        model.eval()
        with torch.no_grad():
            model.embedding.weight *= 2
        every = [list(ids) for n in range(4) for ids in product((3, 4, 5), repeat=n)]
        pairs = Pairs.from_tokens([[4, 5, 3], [5]], [[4], [4]])
        for source, found in zip(sources(pairs), translate(model, pairs, beam=40, length_penalty=length_penalty), strict=True):
            best = max(score(model, source, ids, length_penalty) for ids in every)
            assert score(model, source, found, length_penalty) == pytest.approx(best, abs=1e-5)


def test_a_translation_that_must_end_counts_with_the_probability_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_LENGTH", 3)
    model = Transformer(MICRO.smallest(), MICRO, vocab_size=6)
    model.initialise(torch.Generator().manual_seed(0))
    model.eval()
    # The end follows token 5 alone; 4 is likelier at first.
    table = {(BOS,): [4.0, 3.0], (BOS, 4): [-9.0, 2.0], (BOS, 5): [9.0, 2.0]}

    def step(tokens: torch.Tensor, position: int, caches: list[Cache]) -> tuple[torch.Tensor, list[Cache]]:
        logits = torch.full((len(tokens), 6), -20.0)
        for row, token in zip(logits, tokens.tolist(), strict=True):
            if position == 0:
                row[4], row[5] = table[BOS,]
            else:
                row[EOS], row[3] = table[BOS, token]
        return logits, caches

    monkeypatch.setattr(model, "step", step)
    assert translate(model, Pairs.from_tokens([[4]], [[4]]), beam=2) == [[5]]


def test_a_wider_beam_seldom_finds_worse_translations(trained: Transformer) -> None:
    pairs = reversed_pairs(60, seed=5, longest=4)
    greedy, wide = (
        [score(trained, source, found) for source, found in zip(sources(pairs), translate(trained, pairs, beam=beam), strict=True)]
        for beam in (1, 4)
    )
    gains = np.array(wide) - np.array(greedy)
    assert (gains > -1e-6).mean() > 0.9
    assert gains.mean() > 0


def test_a_high_length_penalty_makes_longer_translations(trained: Transformer) -> None:
    pairs = reversed_pairs(60, seed=6, longest=4)
    lengths = [sum(map(len, translate(trained, pairs, beam=4, length_penalty=p))) for p in (0.0, 1.0, 2.0)]
    assert lengths[0] <= lengths[1] < lengths[2]


@pytest.mark.parametrize("beam", [1, 3])
def test_no_translation_is_longer_than_twice_its_source_and_twenty_tokens(beam: int) -> None:
    for arch in ARCHS:
        pairs = reversed_pairs(5, seed=7)
        for source, found in zip(sources(pairs), translate(new_network(arch), pairs, beam=beam, batch_tokens=1), strict=True):
            assert len(found) <= 2 * len(source) + 18
