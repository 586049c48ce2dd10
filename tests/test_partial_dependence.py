"""Partial dependence on the choices of a search space."""

from __future__ import annotations

import numpy as np
import pytest
from test_distill import Linear

from llmpp_core.predictors.partial_dependence import partial_dependence
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import HAT_WMT


def test_partial_dependence_reads_off_the_slopes_of_a_linear_teacher(rng: np.random.Generator) -> None:
    table = partial_dependence(Linear(), HAT_WMT, HAT_WMT.sample(50, rng)).set_index(["choice", "value"])["mean"]
    assert table["encoder_embed_dim"][640] - table["encoder_embed_dim"][512] == pytest.approx(1.0 * 128 / 640)
    assert table["encoder_ffn_dims"][3072] - table["encoder_ffn_dims"][1024] == pytest.approx(2.0 * 2048 / 3072)
    assert table["encoder_heads"][8] - table["encoder_heads"][4] == pytest.approx(-0.5 / 2)
    assert table["decoder_cross_heads"][8] == pytest.approx(table["decoder_cross_heads"][4])
    assert set(table.index.get_level_values("choice")) == {name for name, _ in HAT_WMT.genes}


def test_partial_dependence_changes_depth_by_repeating_or_dropping_layers() -> None:
    class Recorder:
        def predict(self, archs: list[Architecture]) -> np.ndarray:
            seen.extend(archs)
            return np.zeros(len(archs))

    seen: list[Architecture] = []
    arch = HAT_WMT.sample(1, np.random.default_rng(0), decoder_layers=2)[0]
    partial_dependence(Recorder(), HAT_WMT, [arch])
    assert all(one in HAT_WMT for one in seen)
    depths = {one.decoder_layers: one for one in seen if one.decoder_layers != 2}
    a, b = arch.decoder_ffn_dims
    assert depths[1].decoder_ffn_dims == (a,)
    assert depths[5].decoder_ffn_dims == (a, b, a, b, a)
    assert len(seen) == sum(len(getattr(HAT_WMT, name)) for name in dict.fromkeys(name for name, _ in HAT_WMT.genes))
