"""Zero-cost proxies: each against its definition, and the predictor that they make."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils import estimator_checks
from torch import nn
from torch.nn import functional as F

from llmpp_core.nets import proxies
from llmpp_core.nets.proxies import PROXIES, ZeroCostPredictor
from llmpp_core.nets.transformer import Memory, Transformer
from llmpp_core.predictors.baselines import CalibratedPredictor
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_parameters
from llmpp_core.space.search_space import HAT_WMT, TINY
from llmpp_core.text.batches import Batch, Pairs
from llmpp_core.text.vocabulary import PAD

VOCABULARY = 40


def made_up_pairs(n: int = 32, seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    sides = [[rng.integers(4, VOCABULARY, rng.integers(3, 9)).tolist() for _ in range(n)] for _ in range(2)]
    return Pairs.from_tokens(*sides)


PAIRS = made_up_pairs()
ARCHS = TINY.sample_balanced(6, np.random.default_rng(0))
ARCH = ARCHS[2]


def network(arch: Architecture = ARCH, seed: int = 0) -> Transformer:
    model = Transformer(arch, TINY, VOCABULARY).eval()
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def some_batches(pairs: Pairs = PAIRS, size: int = 8) -> list[Batch]:
    return [pairs.batch(np.arange(start, start + size)) for start in (0, size)]


def predictor(proxy: str, **settings: Any) -> ZeroCostPredictor:
    return ZeroCostPredictor(proxy, PAIRS, TINY, VOCABULARY, **{"batch_size": 8, **settings})


def backward(model: Transformer, batch: Batch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every layer's matrix with the gradient that backward() leaves on it."""
    logits = model(batch.src, batch.tgt)
    F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=PAD).backward()
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name}
    return {name: (p.detach().numpy().astype(float), p.grad.numpy().astype(float)) for name, p in matrices.items()}


# --- definitions --------------------------------------------------------------------------------------------------


def test_gradient_norm_adds_up_the_norms_of_what_backward_leaves() -> None:
    model, batch = network(), some_batches()[0]
    expected = sum(np.sqrt((gradient**2).sum()) for _, gradient in backward(model, batch).values())
    assert proxies.gradient_norm(network(), [batch]) == pytest.approx(expected, rel=1e-5)


def test_snip_adds_up_absolute_weight_times_gradient() -> None:
    model, batch = network(), some_batches()[0]
    expected = sum(np.abs(weight * gradient).sum() for weight, gradient in backward(model, batch).values())
    assert proxies.snip(network(), [batch]) == pytest.approx(expected, rel=1e-5)


def test_a_weights_share_of_snip_is_what_its_removal_changes() -> None:
    model, batch = network().double(), some_batches()[0]

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(batch.src, batch.tgt).flatten(0, 1), batch.labels.flatten(), ignore_index=PAD))

    gradient = proxies._gradients(model, batch)[0][0, 0]
    before, weight = loss(), model.encoder[0].attention.qkv.weight
    share, removed = float(weight[0, 0].detach() * gradient), 1e-3
    with torch.no_grad():
        weight[0, 0] *= 1 - removed
    assert (before - loss()) / removed == pytest.approx(share, rel=1e-2)


def test_weights_are_all_matrices_but_the_embeddings() -> None:
    model = network()
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert sum(p.numel() for p in proxies._weights(model)) == count_parameters(ARCH, TINY.qkv_dim) - vectors


def test_zico_of_two_batches_by_hand() -> None:
    batches = some_batches()
    first, second = (backward(network(), batch) for batch in batches)
    expected = 0.0
    for name in first:
        a, b = (np.abs(gradients[name][1]) for gradients in (first, second))
        mean, deviation = (a + b) / 2, np.abs(a - b) / 2
        expected += math.log((mean[deviation > 0] / deviation[deviation > 0]).sum())
    assert proxies.zico(network(), batches) == pytest.approx(expected, rel=1e-4)


def test_naswot_counts_agreements_of_relus() -> None:
    model, batch = network(replace_all(ARCH, layers=1)), some_batches()[0]
    codes: dict[str, np.ndarray] = {}
    for stack, kept in (("encoder", batch.src != PAD), ("decoder", batch.labels != PAD)):
        for i, layer in enumerate(getattr(model, stack)):
            layer.ffn.down.register_forward_pre_hook(
                lambda module, inputs, name=f"{stack}{i}", kept=kept: codes.update({name: (inputs[0][kept] > 0).detach().numpy()})
            )
    model(batch.src, batch.tgt)
    expected = 0.0
    for stack in ("encoder", "decoder"):
        code = np.concatenate([c for name, c in codes.items() if name.startswith(stack)], axis=1)
        kernel = (code[:, None] == code[None]).sum(axis=2)
        expected += np.linalg.slogdet(kernel + np.eye(len(kernel)))[1]
    assert proxies.naswot(model, [batch]) == pytest.approx(expected)


def test_naswot_tells_a_batch_of_one_repeated_sentence_from_a_varied_one() -> None:
    repeated = Pairs.from_tokens([[5, 6, 7]] * 8, [[8, 9, 10]] * 8)
    varied = made_up_pairs_of_length(3, 8)
    scores = [proxies.naswot(network(), some_batches(pairs, 4)) for pairs in (repeated, varied)]
    assert np.isfinite(scores).all(), "equal codes make the kernel singular"
    assert scores[0] < scores[1]


def test_jacobians_of_repeated_sentences_are_correlated() -> None:
    repeated, varied = Pairs.from_tokens([[5, 6, 7]] * 8, [[8, 9, 10]] * 8), made_up_pairs_of_length(3, 8)
    scores = [proxies.jacobian_covariance(network(), some_batches(pairs, 4)) for pairs in (repeated, varied)]
    # Four equal rows have the eigenvalues 4, 0, 0, 0.
    assert scores[0] == pytest.approx(-(math.log(4) + 1 / 4 + 3 * (math.log(1e-5) + 1e5)), rel=1e-3)
    assert scores[0] < scores[1] <= -4, "uncorrelated sentences have eigenvalues of 1, the best there is"


def made_up_pairs_of_length(length: int, n: int) -> Pairs:
    tokens = np.random.default_rng(0).integers(4, VOCABULARY, (2, n, length)).tolist()
    return Pairs.from_tokens(*tokens)


# --- SynFlow ------------------------------------------------------------------------------------------------------


def replace_all(arch: Architecture, layers: int, **values: int) -> Architecture:
    """The architecture with so many decoder layers like its first, and one value in all layers."""
    lists = {name: (getattr(arch, name)[0],) * layers for name in LISTS}
    lists |= {name: (value,) * len(lists.get(name, arch.encoder_heads)) for name, value in values.items()}
    return replace(arch, **lists)


LISTS = ("decoder_ffn_dims", "decoder_self_heads", "decoder_cross_heads", "decoder_cross_spans")


def synflow(arch: Architecture, seed: int = 0) -> float:
    return proxies.synflow(network(arch, seed), [])


def plain_flow(model: Transformer, normalised: bool) -> tuple[float, float]:
    """Output and synaptic flow of the network itself on all-ones embeddings, with absolute weights."""
    model.double()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and not normalised:
            module.forward = lambda x: x
    weights = proxies._weights(model)
    for weight in weights:
        weight.data.abs_()
    for name, weight in model.named_parameters():
        # A single key is chosen whatever the query; without one, no rounding errors of huge products get into the gradient.
        if name.endswith(("qkv.weight", "query.weight")):
            weight.data[: TINY.qkv_dim] = 0
    mask = torch.ones(1, 1, dtype=torch.bool)
    x, y = (torch.ones(1, 1, dim, dtype=torch.float64) for dim in (model.arch.encoder_embed_dim, model.arch.decoder_embed_dim))
    for layer in model.encoder:
        x = layer(x, mask[:, None, None, :])
    for layer in model.decoder:
        y = layer(y, Memory([x], mask))
    gradients = torch.autograd.grad(y.sum(), weights)
    return float(y.detach().sum()), float(sum((w.detach() * g).sum() for w, g in zip(weights, gradients, strict=True)))


def test_synflow_is_that_of_the_network_without_normalisation() -> None:
    # One token and a span of one layer: attention has nothing to choose from, so the network itself is linear.
    arch = replace_all(ARCH, layers=3, decoder_cross_spans=-1)
    _, flow = plain_flow(network(arch), normalised=False)
    assert synflow(arch) == pytest.approx(math.log(flow), rel=1e-12)


def test_synflow_would_be_nothing_with_normalisation() -> None:
    output, _ = plain_flow(network(replace_all(ARCH, layers=3, decoder_cross_spans=-1)), normalised=True)
    assert output == pytest.approx(0, abs=1e-9)


def test_synflow_reads_neither_data_nor_signs_nor_embeddings() -> None:
    model = network()
    expected = proxies.synflow(model, some_batches())
    assert proxies.synflow(model, some_batches(made_up_pairs(seed=1))) == expected
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
        model.embedding.weight.zero_()
    assert proxies.synflow(model, []) == expected


def test_synflow_leaves_the_network_as_it_was() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    proxies.synflow(model, [])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_synflow_grows_with_depth_and_width() -> None:
    assert synflow(TINY.smallest()) < synflow(TINY.largest())
    by_depth = [synflow(replace_all(ARCH, layers)) for layers in range(1, 7)]
    assert by_depth == sorted(by_depth)
    for stack in ("encoder", "decoder"):
        by_ffn = [synflow(replace_all(ARCH, 3, **{f"{stack}_ffn_dims": width})) for width in (32, 64, 128)]
        assert by_ffn == sorted(by_ffn)
        by_width = [synflow(replace(ARCH, **{f"{stack}_embed_dim": width})) for width in (48, 64)]
        assert by_width == sorted(by_width)


def test_synflow_does_not_see_heads() -> None:
    heads = {"encoder_heads": 2, "decoder_self_heads": 2, "decoder_cross_heads": 2}
    twice = {name: 2 * number for name, number in heads.items()}
    assert synflow(replace_all(ARCH, 3, **heads)) == pytest.approx(synflow(replace_all(ARCH, 3, **twice)), rel=1e-12)


def test_synflow_of_the_largest_space_is_beyond_float32_and_finite() -> None:
    model = Transformer(HAT_WMT.largest(), HAT_WMT, 8)
    model.initialise(torch.Generator().manual_seed(0))
    assert math.log(torch.finfo(torch.float32).max) < proxies.synflow(model, []) < math.log(torch.finfo(torch.float64).max)


# --- the predictor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", PROXIES)
def test_scores_do_not_depend_on_company_order_or_repetition(proxy: str) -> None:
    scores = predictor(proxy).predict(ARCHS)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert len(set(scores)) == len(ARCHS)
    other = predictor(proxy)
    torch.rand(3)
    assert other.predict([ARCHS[4], ARCHS[4], ARCHS[1]]).tolist() == scores[[4, 4, 1]].tolist()
    assert other.predict(ARCHS[::-1]).tolist() == scores[::-1].tolist()


@pytest.mark.parametrize("proxy", PROXIES)
def test_another_seed_gives_another_score(proxy: str) -> None:
    assert predictor(proxy, seed=1).predict([ARCH]) != predictor(proxy).predict([ARCH])


def test_the_first_draw_of_weights_is_that_of_training() -> None:
    rows = np.random.default_rng(3).choice(len(PAIRS), (2, 8), replace=False)
    expected = proxies.snip(network(seed=3), [PAIRS.batch(rows[0])])
    assert predictor("SNIP", seed=3).predict([ARCH]).item() == pytest.approx(expected, rel=1e-12)


def test_repeats_are_averaged() -> None:
    # SynFlow reads no data, so seeds differ in the weights alone.
    one_by_one = [predictor("SynFlow", seed=seed).predict(ARCHS[:2]) for seed in range(3)]
    assert predictor("SynFlow", repeats=3).predict(ARCHS[:2]) == pytest.approx(np.mean(one_by_one, axis=0), rel=1e-12)


def test_an_architecture_is_scored_once_until_fit_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setitem(PROXIES, "depth", lambda model, batches: calls.append(model.arch) or len(model.decoder))
    mine = predictor("depth")
    assert mine.predict([*ARCHS, *ARCHS]).tolist() == [arch.decoder_layers for arch in ARCHS] * 2
    mine.predict(ARCHS[:2])
    assert calls == ARCHS
    mine.fit(ARCHS, np.zeros(len(ARCHS))).predict(ARCHS[:2])
    assert calls == [*ARCHS, *ARCHS[:2]]
    assert mine.predict([]).shape == (0,)


def test_a_proxy_sees_a_network_in_evaluation_mode_and_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setitem(PROXIES, "look", lambda model, batches: seen.append((model.training, [len(b.src) for b in batches])) or 1.0)
    predictor("look", batches=3, batch_size=5).predict([ARCH])
    assert seen == [(False, [5, 5, 5])]


def test_cross_validation_and_calibration_take_it() -> None:
    bleu = np.arange(len(ARCHS), dtype=float)
    scores = cross_val_score(predictor("SynFlow"), ARCHS, bleu, cv=2, scoring="neg_mean_absolute_error")
    assert np.isfinite(scores).all()
    calibrated = CalibratedPredictor(predictor("SynFlow")).fit(ARCHS, bleu)
    assert np.isfinite(calibrated.predict(ARCHS)).all()
    assert clone(predictor("ZiCo", seed=4)).get_params()["seed"] == 4


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_no_attributes_set_in_init",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_get_params_invariance",
        "check_set_params",
        "check_mixin_order",
    ],
)
def test_scikit_learns_checks_that_need_no_plain_array(check: str) -> None:
    getattr(estimator_checks, check)("ZeroCostPredictor", predictor("SNIP"))


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxy", "settings", "message"),
    [
        ("synflow", {}, "proxy: 'synflow' is not known; known are gradient norm, SNIP, SynFlow"),
        ("SNIP", {"batch_size": 17}, "pairs: 2 batches of 17 need more than the 32 there are"),
        ("SNIP", {"repeats": 0}, "batches, batch_size, repeats: expected at least 1 each, got 2, 8, 0"),
        ("ZiCo", {"batches": 1}, "ZiCo: expected at least 2 batches to compare, got 1"),
    ],
)
def test_wrong_parameters_are_named(proxy: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        predictor(proxy, **settings).predict([ARCH])


def test_an_architecture_of_another_space_is_refused() -> None:
    with pytest.raises(ValueError, match="not in search space TINY: encoder_embed_dim is 512"):
        predictor("SynFlow").predict([HAT_WMT.smallest()])


def test_a_score_that_is_no_number_is_an_error() -> None:
    alike = Pairs.from_tokens([[5, 6, 7]] * 4, [[8, 9, 10]] * 4)
    with pytest.raises(ValueError, match=r"^proxy ZiCo: not every score is a finite number: \[-inf\] for Architecture\("):
        ZeroCostPredictor("ZiCo", alike, TINY, VOCABULARY, batch_size=2).predict([ARCH])
