"""Feature sets: shapes and names agree, HAT's features are those of the records, scikit-learn can use them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hat_costs import count_flops, count_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from llmpp_core import upstream
from llmpp_core.space.architecture import SPAN_LAYERS
from llmpp_core.space.features import HAT_FEATURE_NAMES, CostFeatures, DepthFeatures, HATFeatures, LayerFeatures, ScoreFeatures
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import HAT_WMT, SPACES, TINY

quick = settings(max_examples=30)
seeds = st.integers(0, 2**32 - 1)
TRANSFORMERS = [
    HATFeatures(),
    LayerFeatures(),
    LayerFeatures(encoder_layers=8, decoder_layers=7),
    CostFeatures(qkv_dim=512),
    CostFeatures(flops=False, qkv_dim=512),
    CostFeatures(parameters=False, qkv_dim=512, length=23),
    DepthFeatures(),
    DepthFeatures(log=True),
]


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=repr)
def test_shape_names_and_statelessness(transformer: HATFeatures, rng: np.random.Generator) -> None:
    archs = HAT_WMT.sample(7, rng)
    rows = transformer.transform(archs)
    assert rows.shape == (7, len(transformer.get_feature_names_out()))
    assert rows.dtype == float
    assert np.isfinite(rows).all()
    assert (clone(transformer).fit_transform(archs) == rows).all()
    assert (np.vstack([transformer.transform([arch]) for arch in archs]) == rows).all()
    assert (transformer.transform(np.array(archs, dtype=object)) == rows).all()


def test_hat_features_of_a_known_architecture(rng: np.random.Generator) -> None:
    (arch,) = HAT_WMT.sample(1, rng, decoder_layers=2)
    row = dict(zip(HAT_FEATURE_NAMES, HATFeatures().transform([arch])[0], strict=True))
    assert row["encoder_embed_dim"] == arch.encoder_embed_dim
    assert row["encoder_layers"] == 6
    assert row["decoder_layers"] == 2
    assert row["encoder_ffn_dim_mean"] == pytest.approx(np.mean(arch.encoder_ffn_dims))
    assert row["decoder_cross_heads_mean"] == pytest.approx(np.mean(arch.decoder_cross_heads))
    assert row["decoder_cross_layers_mean"] == pytest.approx(np.mean([SPAN_LAYERS[s] for s in arch.decoder_cross_spans]))


@pytest.mark.needs_data("latency")
@pytest.mark.parametrize("name", upstream.LATENCY_TABLES)
def test_hat_features_have_the_scale_of_the_latency_tables(name: str, rng: np.random.Generator) -> None:
    """The tables hold architectures of all values of HAT's spaces together; their averages agree with samples of it."""
    heads, ffn = (8, 4, 2), (3072, 2048, 1024, 512)
    lists = {"encoder_ffn_dims": ffn, "decoder_ffn_dims": ffn}
    lists |= dict.fromkeys(("encoder_heads", "decoder_self_heads", "decoder_cross_heads"), heads)
    rows = HATFeatures().transform(replace(HAT_WMT, name="HAT", **lists).sample(4000, rng))
    table = upstream.latency_table(name, download=False)[list(HAT_FEATURE_NAMES)]
    assert np.allclose(rows.mean(axis=0), table.mean(), rtol=0.04)
    assert np.allclose(rows.std(axis=0), table.std(), rtol=0.1, atol=0.05)


def test_rows_of_features_pass_through(rng: np.random.Generator) -> None:
    rows = HATFeatures().transform(HAT_WMT.sample(5, rng))
    assert (HATFeatures().transform(rows) == rows).all()
    assert (HATFeatures().transform(pd.DataFrame(rows, columns=list(HAT_FEATURE_NAMES))) == rows).all()
    for wrong in (rows[:, :9], rows[0]):
        with pytest.raises(ValueError, match=r"expected a sequence of Architecture or an \(n, 10\) array, got shape"):
            HATFeatures().transform(wrong)


@quick
@given(st.sampled_from(list(SPACES.values())), seeds)
def test_layer_features_tell_architectures_apart(space: object, seed: int) -> None:
    rng = np.random.default_rng(seed)
    archs = space.sample(40, rng)  # type: ignore[attr-defined]
    genes = Genes(space)  # type: ignore[arg-type]
    archs += list(genes.table(genes.mutate(genes.encode(archs), rng, 0.03)))
    rows = {tuple(row) for row in LayerFeatures().transform(archs)}
    assert len(rows) == len(set(archs))


def test_layer_features_refuse_a_deeper_stack() -> None:
    with pytest.raises(ValueError, match="architecture has 6 decoder_layers, these features hold 3"):
        LayerFeatures(decoder_layers=3).transform([HAT_WMT.largest()])


@quick
@given(seeds)
def test_cost_features_are_logarithms_of_costs(seed: int) -> None:
    archs = TINY.sample(5, np.random.default_rng(seed))
    rows = np.exp(CostFeatures(qkv_dim=64, length=12).transform(archs))
    assert rows[:, 0] == pytest.approx([count_parameters(arch, qkv_dim=64) for arch in archs])
    assert rows[:, 1] == pytest.approx([count_flops(arch, length=12, qkv_dim=64) for arch in archs])


def test_cost_features_need_a_column(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="at least one of parameters and flops"):
        CostFeatures(parameters=False, flops=False, qkv_dim=512).transform(HAT_WMT.sample(1, rng))


def test_depth_features_count_decoder_layers(rng: np.random.Generator) -> None:
    archs = HAT_WMT.sample(9, rng)
    assert DepthFeatures().transform(archs)[:, 0].tolist() == [arch.decoder_layers for arch in archs]
    assert np.exp(DepthFeatures(log=True).transform(archs)) == pytest.approx(DepthFeatures().transform(archs))


def test_score_features_look_up_and_name_what_is_unknown(rng: np.random.Generator) -> None:
    known, other = HAT_WMT.sample(2, rng)
    features = ScoreFeatures({known: (25.0, 26.0)})
    assert features.transform([known, known]).tolist() == [[25.0, 26.0]] * 2
    with pytest.raises(KeyError, match="1 of 2 architectures have no recorded score"):
        features.transform([known, other])
