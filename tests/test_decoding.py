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
from llmpp_core.nets.transformer import Transformer
from llmpp_core.text.batches import Pairs
from llmpp_core.text.special_tokens import BOS, EOS, PAD


@pytest.fixture(scope="module")
def trained() -> Transformer:
    """Return a network that has learned most of its task, so that it ends its sentences."""
    model = Transformer(MICRO.largest(), MICRO, VOCAB)
    train(model, reversed_pairs(400, seed=1, longest=4), Recipe(updates=120, batch_tokens=400, learning_rate=0.01, dropout=0), seed=0)
    return model


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_a_step_at_a_time_gives_the_logits_of_all_at_once() -> None:
    batch = reversed_pairs(4, seed=0, longest=9).batch(np.arange(4))
    assert (batch.src == PAD).any()
    for arch in MICRO.sample(5, np.random.default_rng(1)):
        model = new_network(arch).double()
        expected = model(batch.src, batch.tgt)
        caches = model.start(model.encode(batch.src))
        for position in range(batch.tgt.shape[1]):
            logits, caches = model.step(batch.tgt[:, position], position, caches)
            torch.testing.assert_close(logits, expected[:, position], rtol=1e-9, atol=1e-9)


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


def test_greedy_search_is_the_plain_loop(trained: Transformer) -> None:
    # One sentence at a time, since untrained networks go on up to the limit, which depends on the longest source of a batch.
    for arch in MICRO.sample(2, np.random.default_rng(0)):
        model, pairs = new_network(arch), reversed_pairs(3, seed=2)
        assert translate(model, pairs, batch_tokens=1) == [greedily(model, source) for source in sources(pairs)]
    pairs = reversed_pairs(30, seed=2, longest=4)
    found = translate(trained, pairs)
    assert found == [greedily(trained, source) for source in sources(pairs)]
    assert max(map(len, found)) < 10


@pytest.mark.parametrize("beam", [1, 3])
def test_translations_do_not_depend_on_order_company_or_targets(trained: Transformer, beam: int) -> None:
    pairs = reversed_pairs(40, seed=3, longest=4)
    together = translate(trained, pairs, beam=beam)
    assert len({tuple(ids) for ids in together}) > 20
    assert not {PAD, BOS, EOS} & {token for ids in together for token in ids}
    assert translate(trained, pairs, beam=beam, batch_tokens=40) == together
    order = np.random.default_rng(0).permutation(40)
    mixed = Pairs(pairs.src[order], torch.full_like(pairs.tgt, 5), pairs.src_lengths[order], np.full(40, 3))
    assert translate(trained, mixed, beam=beam) == [together[i] for i in order]
    assert translate(trained, reversed_pairs(0, seed=0), beam=beam) == []


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model: expected a network in evaluation mode; call model\.eval\(\)"):
        translate(new_network(MICRO.smallest()).train(), reversed_pairs(2, seed=0))


def score(model: Transformer, source: list[int], tokens: list[int]) -> float:
    """Return the log-probability of a translation and its end, per token."""
    logits = model(torch.tensor([source]), torch.tensor([[BOS, *tokens]]))[0]
    logits[:, [PAD, BOS]] = -torch.inf
    chosen = logits.log_softmax(-1)[range(len(tokens) + 1), [*tokens, EOS]]
    return float(chosen.sum()) / (len(tokens) + 1)


def test_a_wide_beam_finds_the_best_of_all_translations(monkeypatch: pytest.MonkeyPatch) -> None:
    # With room for three tokens of three kinds there are 40 translations.
    monkeypatch.setattr(decoding, "MAX_LENGTH", 5)
    every = [list(ids) for n in range(4) for ids in product((3, 4, 5), repeat=n)]
    pairs = Pairs.from_tokens([[4, 5, 3], [5]], [[4], [4]])
    for seed in range(3):
        model = Transformer(MICRO.sample(1, np.random.default_rng(seed))[0], MICRO, vocab_size=6).eval()
        model.initialise(torch.Generator().manual_seed(seed))
        model.embedding.weight *= 2
        for source, found in zip(sources(pairs), translate(model, pairs, beam=40), strict=True):
            assert score(model, source, found) == pytest.approx(max(score(model, source, ids) for ids in every), abs=1e-5)
