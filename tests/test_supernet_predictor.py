"""The supernet as a predictor gives the scores of the plain loop, in any order and company."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_nets import MICRO, new_supernet, reversed_pairs

from llmpp_core.nets.decoding import translate
from llmpp_core.nets.loss import validation_loss
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.nets.supernet import KINDS, SuperTransformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import TINY
from llmpp_core.text.batches import Pairs

PAIRS = reversed_pairs(40, seed=0)
LARGEST = MICRO.largest()
# Candidates as a search makes them: relatives, some of which share all of their encoder, or its first layers.
ARCHS: list[Architecture] = [
    *MICRO.sample(4, np.random.default_rng(0)),
    *(replace(LARGEST, encoder_ffn_dims=(28,) * i + (14,) * (4 - i)) for i in range(4)),
    *(replace(LARGEST, decoder_ffn_dims=(18, 36, width)) for width in (18, 36)),
    LARGEST,
    MICRO.smallest(),
]


def plain_loop(supernet: SuperTransformer, label_smoothing: float = 0.1) -> list[float]:
    return [-validation_loss(supernet.subnet(arch), PAIRS, label_smoothing=label_smoothing) for arch in ARCHS]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_validation_losses_of_extracted_networks(kind: str) -> None:
    supernet, before = new_supernet(kind), torch.get_num_threads()
    expected = plain_loop(supernet)
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(SupernetPredictor(supernet, PAIRS, batch_tokens=50).predict(ARCHS), expected, atol=1e-5)
    unsmoothed = SupernetPredictor(supernet, PAIRS, label_smoothing=0.0).predict(ARCHS)
    np.testing.assert_allclose(unsmoothed, plain_loop(supernet, 0.0), atol=1e-5)
    # Neither order nor threads matter.
    torch.set_num_threads(3)
    try:
        found = SupernetPredictor(supernet, PAIRS).predict(ARCHS[::-1])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found[::-1], expected, atol=1e-6)


@pytest.mark.parametrize(("kind", "runs"), [("shared", 1), ("layer-wise", 3)])
def test_layers_that_candidates_share_are_run_once(kind: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, calls = new_supernet(kind), list[int]()
    layer = type(supernet.weights.encoder[0])
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *a: calls.append(1) or forward(*a))
    # They have the largest encoder of four layers.
    SupernetPredictor(supernet, PAIRS).predict([LARGEST, *ARCHS[8:10]])
    assert len(calls) == 4 * len(PAIRS.batches(1024)) * runs


def test_a_clone_shares_the_supernet_and_the_pairs_and_has_no_scores() -> None:
    predictor = SupernetPredictor(new_supernet(), PAIRS, batch_tokens=512)
    predictor.predict(ARCHS[:1])
    copy = clone(predictor)
    assert (copy.supernet, copy.pairs, copy.batch_tokens) == (predictor.supernet, PAIRS, 512)
    assert not hasattr(copy, "scores_")


def test_with_a_measure_of_translations_the_score_is_that() -> None:
    supernet = new_supernet("shared")

    def length(translations: list[list[int]]) -> float:
        return sum(map(len, translations)) / len(translations)

    found = SupernetPredictor(supernet, PAIRS, bleu=length).predict(ARCHS[:2])
    assert found.tolist() == [length(translate(supernet.subnet(arch), PAIRS)) for arch in ARCHS[:2]]


@pytest.mark.parametrize(
    ("supernet", "pairs", "arch", "message"),
    [
        (new_supernet(), PAIRS, TINY.largest(), "not in search space MICRO: encoder_embed_dim is 64; allowed are 20, 12"),
        (new_supernet().train(), PAIRS, LARGEST, r"supernet: expected one in evaluation mode; call supernet\.eval\(\)"),
        (new_supernet(), PAIRS.first(0), LARGEST, "pairs: expected at least one"),
    ],
)
def test_what_cannot_be_scored_is_refused(supernet: SuperTransformer, pairs: Pairs, arch: Architecture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupernetPredictor(supernet, pairs).predict([arch])
