"""Batches: every pair once, never over the limit, padding never counted."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpp_core.text.batches import Pairs, epochs
from llmpp_core.text.vocabulary import BOS, EOS, PAD

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60)


def make(lengths: list[tuple[int, int]]) -> Pairs:
    """Pairs of sentences of these lengths, each of other tokens."""
    tokens = iter(range(4, 10**6))
    src, tgt = ([[next(tokens) for _ in range(pair[side])] for pair in lengths] for side in (0, 1))
    return Pairs.from_tokens(src, tgt)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    rng = np.random.default_rng(0)
    source = rng.integers(5, 30, size=2000)
    return make([(int(s), max(1, int(s + d))) for s, d in zip(source, rng.integers(-4, 5, size=2000), strict=True)])


def test_markers_are_added() -> None:
    pairs = Pairs.from_tokens([[5, 6], [7]], [[8], [9, 10, 11]])
    assert pairs.src.tolist() == [[5, 6, EOS], [7, EOS, PAD]]
    assert pairs.tgt.tolist() == [[BOS, 8, EOS, PAD, PAD], [BOS, 9, 10, 11, EOS]]
    assert (pairs.src_lengths.tolist(), pairs.tgt_lengths.tolist()) == ([3, 2], [3, 5])


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 200), shuffle=st.booleans())
def test_batches_partition_the_pairs_within_the_limit(lengths, batch_tokens: int, shuffle: bool) -> None:
    pairs = make(lengths)
    batches = pairs.batches(batch_tokens, np.random.default_rng(0) if shuffle else None)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(pairs)))
    for rows in batches:
        batch = pairs.batch(rows)
        assert len(rows) == 1 or max(batch.src.numel(), batch.tgt.numel()) <= batch_tokens


@given(lengths=LENGTHS)
def test_tokens_are_the_labels_without_padding(lengths) -> None:
    pairs = make(lengths)
    for rows in pairs.batches(100):
        batch = pairs.batch(rows)
        assert batch.tokens == int((batch.labels != PAD).sum()) == sum(lengths[row][1] + 1 for row in rows)


@given(lengths=LENGTHS)
def test_batch_holds_its_sentences_and_no_column_of_padding(lengths) -> None:
    pairs = make(lengths)
    for rows in pairs.batches(100):
        batch = pairs.batch(rows)
        for i, row in enumerate(rows):
            source, target = lengths[row]
            assert batch.src[i, : source + 1].tolist() == pairs.src[row, : source + 1].tolist()
            assert (batch.src[i, source + 1 :] == PAD).all()
            # A label is the next input, the last one EOS.
            assert batch.tgt[i, 0] == BOS
            assert batch.labels[i, :target].tolist() == batch.tgt[i, 1 : target + 1].tolist()
            assert batch.labels[i, target] == EOS
            assert (batch.labels[i, target + 1 :] == PAD).all()
        assert (batch.src != PAD).any(dim=0).all()
        assert (batch.labels != PAD).any(dim=0).all()


def test_sentences_of_similar_length_share_a_batch(pairs: Pairs) -> None:
    batches = [pairs.batch(rows) for rows in pairs.batches(1000, np.random.default_rng(0))]
    assert sum(batch.tokens for batch in batches) / sum(batch.labels.numel() for batch in batches) > 0.85


def test_without_a_generator_the_order_is_that_of_lengths(pairs: Pairs) -> None:
    longer = np.maximum(pairs.src_lengths, pairs.tgt_lengths)
    order = np.concatenate(pairs.batches(500))
    assert (np.diff(longer[order]) >= 0).all()
    assert [rows.tolist() for rows in pairs.batches(500)] == [rows.tolist() for rows in pairs.batches(500)]


def test_epochs_depend_on_seed_and_number_alone(pairs: Pairs) -> None:
    def order(seed: int, n: int) -> list[list[int]]:
        return [rows.tolist() for rows in islice(epochs(pairs, 2000, seed), n)]

    per_epoch = len(pairs.batches(2000, np.random.default_rng([1, 0])))
    found = order(1, 2 * per_epoch)
    np.random.default_rng(99).random(1000)
    assert order(1, 2 * per_epoch) == found
    assert found[per_epoch:] == [rows.tolist() for rows in pairs.batches(2000, np.random.default_rng([1, 1]))]
    assert found[:per_epoch] != found[per_epoch:]
    assert order(2, per_epoch) != found[:per_epoch]
    for epoch in (found[:per_epoch], found[per_epoch:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(len(pairs)))


def test_nothing_makes_no_batches() -> None:
    assert Pairs.from_tokens([], []).batches(100) == []
