"""Zero-cost proxies: each against its definition, and the predictor that they make."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from torch import nn
from torch.nn import functional as F

from llmpp_core.nets import proxies
from llmpp_core.nets.proxies import PROXIES, ZeroCostPredictor
from llmpp_core.nets.transformer import Memory, Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_parameters
from llmpp_core.space.search_space import HAT_WMT, TINY
from llmpp_core.text.batches import Batch, Pairs
from llmpp_core.text.special_tokens import PAD

VOCABULARY = 40


def made_up_pairs(n: int = 32, seed: int = 0, longest: int = 8) -> Pairs:
    rng = np.random.default_rng(seed)
    return Pairs.from_tokens(*[[rng.integers(4, VOCABULARY, rng.integers(3, longest + 1)).tolist() for _ in range(n)] for _ in range(2)])


PAIRS = made_up_pairs()
ALIKE = Pairs.from_tokens([[5, 6, 7]] * 8, [[8, 9, 10]] * 8)
ARCHS = TINY.sample_balanced(4, np.random.default_rng(0))
ARCH = ARCHS[2]


def network(arch: Architecture = ARCH, seed: int = 0) -> Transformer:
    model = Transformer(arch, TINY, VOCABULARY).eval()
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def some_batches(pairs: Pairs = PAIRS, size: int = 8) -> list[Batch]:
    return [pairs.batch(np.arange(start, start + size)) for start in (0, size)]


def predictor(proxy: str, **settings: Any) -> ZeroCostPredictor:
    return ZeroCostPredictor(proxy, PAIRS, TINY, VOCABULARY, **{"batch_size": 8, **settings})


def backward(model: Transformer, batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every layer's matrix with the gradient that backward() leaves on it."""
    logits = model(batch.src, batch.tgt)
    F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=PAD).backward()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name]
    assert sum(p.numel() for p in model.parameters() if p.ndim == 1) + sum(p.numel() for p in matrices) == count_parameters(
        ARCH, TINY.qkv_dim
    )
    return [(p.detach().numpy().astype(float), p.grad.numpy().astype(float)) for p in matrices]


# --- definitions --------------------------------------------------------------------------------------------------


def test_gradient_norm_and_snip_add_up_what_backward_leaves() -> None:
    batch = some_batches()[0]
    found = backward(network(), batch)
    norms = sum(np.sqrt((gradient**2).sum()) for _, gradient in found)
    assert proxies.gradient_norm(network(), [batch]) == pytest.approx(norms, rel=1e-5)
    products = sum(np.abs(weight * gradient).sum() for weight, gradient in found)
    assert proxies.snip(network(), [batch]) == pytest.approx(products, rel=1e-5)


def test_zico_of_two_batches_by_hand() -> None:
    batches, expected = some_batches(), 0.0
    for first, second in zip(*(backward(network(), batch) for batch in batches), strict=True):
        a, b = np.abs(first[1]), np.abs(second[1])
        mean, deviation = (a + b) / 2, np.abs(a - b) / 2
        expected += math.log((mean[deviation > 0] / deviation[deviation > 0]).sum())
    assert proxies.zico(network(), batches) == pytest.approx(expected, rel=1e-4)


def test_naswot_counts_agreements_of_relus() -> None:
    model, batch = network(alike_layers(1)), some_batches()[0]
    expected = 0.0
    for stack, kept in ((model.encoder, batch.src != PAD), (model.decoder, batch.labels != PAD)):
        codes: list[np.ndarray] = []
        for layer in stack:
            layer.ffn.down.register_forward_pre_hook(lambda _, x, kept=kept, codes=codes: codes.append((x[0][kept] > 0).numpy()))
        with torch.no_grad():
            model(batch.src, batch.tgt)
        code = np.concatenate(codes, axis=1)
        kernel = (code[:, None] == code[None]).sum(axis=2)
        expected += np.linalg.slogdet(kernel + np.eye(len(kernel)))[1]
    assert proxies.naswot(network(alike_layers(1)), [batch]) == pytest.approx(expected)


@pytest.mark.parametrize("proxy", ["NASWOT", "Jacobian covariance"])
def test_a_repeated_sentence_scores_less_than_varied_ones(proxy: str) -> None:
    repeated, varied = (PROXIES[proxy](network(), some_batches(pairs, 4)) for pairs in (ALIKE, made_up_pairs(8, longest=3)))
    assert -np.inf < repeated < varied, "equal codes make the kernel singular"
    if proxy == "Jacobian covariance":
        # Four equal rows have the eigenvalues 4, 0, 0, 0; uncorrelated ones have 1, the best there is.
        assert repeated == pytest.approx(-(math.log(4) + 1 / 4 + 3 * (math.log(1e-5) + 1e5)), rel=1e-3)
        assert varied <= -4


# --- SynFlow ------------------------------------------------------------------------------------------------------

LISTS = ("decoder_ffn_dims", "decoder_self_heads", "decoder_cross_heads", "decoder_cross_spans")


def alike_layers(layers: int, **values: int) -> Architecture:
    """An architecture with so many decoder layers, all alike, and one value in all layers."""
    lists = {name: (getattr(ARCH, name)[0],) * layers for name in LISTS}
    lists |= {name: (value,) * len(lists.get(name, ARCH.encoder_heads)) for name, value in values.items()}
    return replace(ARCH, **lists)


def synflow(arch: Architecture) -> float:
    return proxies.synflow(network(arch), [])


def test_synflow_is_that_of_the_network_without_normalisation() -> None:
    # One token and a span of one layer: attention has nothing to choose from, so the network itself is linear.
    arch = alike_layers(3, decoder_cross_spans=-1)
    model = network(arch).double()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = lambda x: x
    weights = [p for name, p in model.named_parameters() if p.ndim == 2 and name != "embedding.weight"]
    for weight in weights:
        weight.data.abs_()
    for name, weight in model.named_parameters():
        # A single key is chosen whatever the query; without one, no rounding errors of huge products get into the gradient.
        if name.endswith(("qkv.weight", "query.weight")):
            weight.data[: TINY.qkv_dim] = 0
    mask = torch.ones(1, 1, dtype=torch.bool)
    x, y = (torch.ones(1, 1, dim, dtype=torch.float64) for dim in (arch.encoder_embed_dim, arch.decoder_embed_dim))
    for layer in model.encoder:
        x = layer(x, mask[:, None, None, :])
    for layer in model.decoder:
        y = layer(y, Memory([x], mask))
    flow = sum((w.detach() * g).sum() for w, g in zip(weights, torch.autograd.grad(y.sum(), weights), strict=True))
    assert synflow(arch) == pytest.approx(math.log(float(flow)), rel=1e-12)


def test_synflow_reads_neither_data_nor_signs_nor_embeddings_and_changes_nothing() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = proxies.synflow(model, some_batches())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
        model.embedding.weight.zero_()
    assert proxies.synflow(model, []) == expected


def test_synflow_of_the_largest_space_is_beyond_float32_and_finite() -> None:
    model = Transformer(HAT_WMT.largest(), HAT_WMT, 8)
    model.initialise(torch.Generator().manual_seed(0))
    assert math.log(torch.finfo(torch.float32).max) < proxies.synflow(model, []) < math.log(torch.finfo(torch.float64).max)


# --- the predictor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", PROXIES)
def test_scores_do_not_depend_on_company_or_order_but_on_the_seed(proxy: str) -> None:
    scores = predictor(proxy).predict(ARCHS)
    assert np.isfinite(scores).all()
    assert len(set(scores)) == len(ARCHS)
    torch.rand(3)
    assert predictor(proxy).predict([ARCHS[3], ARCHS[3], ARCHS[1]]).tolist() == scores[[3, 3, 1]].tolist()
    assert predictor(proxy, seed=1).predict(ARCHS[:1]) != scores[0]


def test_the_first_draw_of_weights_is_that_of_training_and_repeats_are_averaged() -> None:
    rows = np.random.default_rng(3).choice(len(PAIRS), (2, 8), replace=False)
    expected = proxies.snip(network(seed=3), [PAIRS.batch(rows[0])])
    assert predictor("SNIP", seed=3).predict([ARCH]).item() == pytest.approx(expected, rel=1e-12)
    # SynFlow reads no data, so seeds differ in the weights alone.
    one_by_one = [predictor("SynFlow", seed=seed).predict([ARCH]) for seed in range(3)]
    assert predictor("SynFlow", repeats=3).predict([ARCH]) == pytest.approx(np.mean(one_by_one, axis=0), rel=1e-12)


def test_a_proxy_of_ones_own_sees_each_architecture_once_in_evaluation_mode_and_both_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def depth(model: Transformer, batches: list[Batch]) -> float:
        assert not model.training
        assert [len(batch.src) for batch in batches] == [5, 5]
        seen.append(model.arch)
        return len(model.decoder)

    monkeypatch.setitem(PROXIES, "depth", depth)
    mine = predictor("depth", batch_size=5)
    assert mine.predict([*ARCHS, *ARCHS]).tolist() == [arch.decoder_layers for arch in ARCHS] * 2
    mine.predict(ARCHS[:2])
    assert seen == ARCHS
    mine.fit(ARCHS, np.zeros(len(ARCHS))).predict(ARCHS[:2])
    assert seen == [*ARCHS, *ARCHS[:2]]
    scores = cross_val_score(mine, ARCHS, [arch.decoder_layers for arch in ARCHS], cv=2, scoring="neg_mean_absolute_error")
    assert scores.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("proxy", "settings", "arch", "message"),
    [
        ("synflow", {}, ARCH, "proxy: 'synflow' is not known; known are gradient norm, SNIP, SynFlow"),
        ("SNIP", {"batch_size": 17}, ARCH, "pairs: 2 batches of 17 need more than the 32 there are"),
        ("SNIP", {"repeats": 0}, ARCH, "batch_size, repeats: expected at least 1 each, got 8, 0"),
        ("SynFlow", {}, HAT_WMT.smallest(), "not in search space TINY: encoder_embed_dim is 512"),
        ("ZiCo", {"pairs": ALIKE, "batch_size": 2}, ARCH, r"proxy ZiCo: not every score is a finite number: \[-inf\] for Architecture\("),
    ],
)
def test_what_cannot_be_scored_is_refused(proxy: str, settings: dict[str, Any], arch: Architecture, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        predictor(proxy).set_params(**settings).predict([arch])
