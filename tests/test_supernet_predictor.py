"""The supernet as a predictor gives the scores of the plain loop, in any order and company, and remembers them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_nets import MICRO, new_supernet, reversed_pairs

from llmpp_core.metrics import kendall_tau
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.loss import validation_loss
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.nets.supernet import KINDS, SuperTransformer
from llmpp_core.nets.training import smoothed_loss
from llmpp_core.predictors.baselines import CalibratedPredictor
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import TINY
from llmpp_core.text.batches import Pairs


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return reversed_pairs(40, seed=0)


@pytest.fixture(scope="module")
def archs() -> list[Architecture]:
    """Candidates as a search makes them: relatives, some of which share all of their encoder, or its first layers."""
    rng = np.random.default_rng(0)
    parents = MICRO.sample(8, rng)
    return [*parents, *(MICRO.mutate(parents[i % 8], rng, 0.15) for i in range(24)), MICRO.largest(), MICRO.smallest()]


def plain_loop(supernet: SuperTransformer, pairs: Pairs, archs: list[Architecture], label_smoothing: float = 0.1) -> list[float]:
    """Score one candidate after the other, one batch after the other."""
    scores = []
    with torch.no_grad():
        for arch in archs:
            losses, tokens = 0.0, 0
            for rows in pairs.batches(200):
                batch = pairs.batch(rows)
                losses += float(smoothed_loss(supernet(batch.src, batch.tgt, arch), batch.labels, label_smoothing))
                tokens += batch.tokens
            scores.append(-losses / tokens)
    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_plain_loop(kind: str, pairs: Pairs, archs: list[Architecture]) -> None:
    supernet = new_supernet(kind)
    expected = plain_loop(supernet, pairs, archs)
    for batch_tokens in (50, 1024):
        np.testing.assert_allclose(SupernetPredictor(supernet, pairs, batch_tokens=batch_tokens).predict(archs), expected, atol=1e-5)
    assert np.ptp(expected) > 0.05
    unsmoothed = SupernetPredictor(supernet, pairs, label_smoothing=0.0).predict(archs[:3])
    np.testing.assert_allclose(unsmoothed, plain_loop(supernet, pairs, archs[:3], 0.0), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_validation_loss_of_the_extracted_network(kind: str, pairs: Pairs, archs: list[Architecture]) -> None:
    supernet = new_supernet(kind)
    expected = [-validation_loss(supernet.subnet(arch), pairs) for arch in archs[:6]]
    np.testing.assert_allclose(SupernetPredictor(supernet, pairs).predict(archs[:6]), expected, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("kind", ["shared", "neuron-wise"])
def test_neither_order_nor_company_nor_threads_matter(kind: str, threads: int, pairs: Pairs, archs: list[Architecture]) -> None:
    supernet, before = new_supernet(kind), torch.get_num_threads()
    alone = [SupernetPredictor(supernet, pairs).predict([arch])[0] for arch in archs[:10]]
    order = np.random.default_rng(1).permutation(10)
    torch.set_num_threads(threads)
    try:
        found = SupernetPredictor(supernet, pairs).predict([archs[i] for i in order])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found, np.array(alone)[order], atol=1e-6)


def test_nothing_is_scored_twice(pairs: Pairs, archs: list[Architecture], monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = new_supernet()
    built: list[Architecture] = []
    subnet = supernet.subnet
    monkeypatch.setattr(supernet, "subnet", lambda arch, **settings: built.append(arch) or subnet(arch, **settings))
    predictor = SupernetPredictor(supernet, pairs)
    first = predictor.predict([*archs[:8], *archs[4:8]])
    assert sorted(built, key=repr) == sorted(archs[:8], key=repr)
    np.testing.assert_array_equal(first[8:], first[4:8])
    np.testing.assert_array_equal(predictor.predict(archs[6:10])[:2], first[6:8])
    assert len(built) == len(set(archs[:10]))
    assert predictor.scores_.keys() == set(archs[:10])
    # Fitting forgets, since the supernet may have been trained meanwhile.
    predictor.fit(archs).predict(archs[:1])
    assert len(built) == len(set(archs[:10])) + 1
    assert predictor.predict([]).shape == (0,)


def test_layers_that_candidates_share_are_run_once(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = new_supernet()
    a, b = MICRO.largest(), MICRO.smallest()
    encoder = {name: getattr(a, name) for name in ("encoder_embed_dim", "encoder_ffn_dims", "encoder_heads")}
    relatives = [a, *(Architecture(**{**_fields(arch), **encoder}) for arch in (b, *MICRO.sample(5, np.random.default_rng(3))))]
    batches = len(pairs.batches(1024))
    for kind, expected in (("shared", 4 * batches), ("layer-wise", 4 * batches * len(relatives))):
        supernet = new_supernet(kind)
        calls: list[int] = []
        forward = type(supernet.weights.encoder[0]).forward
        monkeypatch.setattr(
            type(supernet.weights.encoder[0]), "forward", lambda *a, calls=calls, forward=forward: calls.append(1) or forward(*a)
        )
        SupernetPredictor(supernet, pairs).predict(relatives)
        monkeypatch.undo()
        assert len(calls) == expected


def _fields(arch: Architecture) -> dict[str, Any]:
    return {name: getattr(arch, name) for name in Architecture.__slots__}


def test_scikit_learn_takes_it(pairs: Pairs, archs: list[Architecture]) -> None:
    predictor = SupernetPredictor(new_supernet(), pairs, batch_tokens=512)
    raw = predictor.predict(archs)
    copy = clone(predictor)
    assert copy.batch_tokens == 512
    assert not hasattr(copy, "scores_")
    # Supernets are large, and nothing changes them here.
    assert copy.supernet is predictor.supernet
    assert copy.pairs is predictor.pairs
    np.testing.assert_array_equal(copy.predict(archs[:4]), raw[:4])
    assert predictor.score(archs, raw) == 1.0
    # On the scale of other scores, in the same order.
    bleu = 30 + 2 * raw
    calibrated = CalibratedPredictor(predictor).fit(archs[:10], bleu[:10])
    np.testing.assert_allclose(calibrated.predict(archs), bleu, atol=1e-4)
    assert kendall_tau(raw, calibrated.predict(archs)) == pytest.approx(1)


def test_with_a_measure_of_translations_the_score_is_that(pairs: Pairs, archs: list[Architecture]) -> None:
    supernet = new_supernet("shared")
    seen: list[int] = []

    def length(translations: list[list[int]]) -> float:
        seen.append(len(translations))
        return sum(map(len, translations)) / len(translations)

    found = SupernetPredictor(supernet, pairs, bleu=length).predict(archs[:3])
    assert found.tolist() == [length(translate(supernet.subnet(arch).eval(), pairs)) for arch in archs[:3]]
    assert set(seen) == {len(pairs)}


def test_a_progress_bar_counts_candidates(pairs: Pairs, archs: list[Architecture], capsys: pytest.CaptureFixture[str]) -> None:
    SupernetPredictor(new_supernet(), pairs, progress=True).predict(archs[:5])
    assert "supernet: 100%" in capsys.readouterr().err


def test_what_cannot_be_scored_is_refused(pairs: Pairs, archs: list[Architecture]) -> None:
    predictor = SupernetPredictor(new_supernet(), pairs)
    with pytest.raises(ValueError, match="not in search space MICRO: encoder_embed_dim is 64; allowed are 20, 12"):
        predictor.predict([archs[0], TINY.largest()])
    with pytest.raises(ValueError, match=r"supernet: expected one in evaluation mode; call supernet\.eval\(\)"):
        SupernetPredictor(new_supernet().train(), pairs).predict(archs[:1])
    with pytest.raises(ValueError, match="pairs: expected at least one"):
        SupernetPredictor(new_supernet(), pairs.first(0)).predict(archs[:1])
