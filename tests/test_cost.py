"""Parameters and FLOPs: equal to the published records and to PyTorch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hat_costs import count_flops, count_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmpp_core import upstream
from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.search_space import HAT_WMT, SPACES

quick = settings(max_examples=50)
seeds = st.integers(0, 2**32 - 1)


def one(seed: int, decoder_layers: int | None = None) -> Architecture:
    return HAT_WMT.sample(1, np.random.default_rng(seed), decoder_layers=decoder_layers)[0]


@pytest.mark.needs_data("tfs")
def test_exact_on_every_upstream_record() -> None:
    """To the last unit, with and without the output projection, on all 270 rows."""
    rows = [row for split in upstream.tfs_splits(download=False) for part in split[2:] for row in part.itertuples()]
    assert len(rows) == 270
    for row in rows:
        arch = row.architecture
        vocab_size, rest = divmod(row.embedding_parameters, arch.decoder_embed_dim)
        assert rest == 0
        assert count_parameters(arch) == row.parameters
        assert count_flops(arch) == row.flops
        assert count_flops(arch, vocab_size=vocab_size) == row.flops_total


def plain_stacks(arch: Architecture, dim: int) -> nn.ModuleList:
    def stack(layer: type[nn.Module], heads: tuple[int, ...], ffn_dims: tuple[int, ...]) -> nn.ModuleList:
        return nn.ModuleList(layer(dim, h, f, dropout=0.0, batch_first=True) for h, f in zip(heads, ffn_dims, strict=True))

    encoder = stack(nn.TransformerEncoderLayer, arch.encoder_heads, arch.encoder_ffn_dims)
    decoder = stack(nn.TransformerDecoderLayer, arch.decoder_self_heads, arch.decoder_ffn_dims)
    return nn.ModuleList([encoder, decoder])


@quick
@given(st.sampled_from(list(SPACES.values())), seeds)
def test_parameters_equal_a_plain_torch_transformers(space: object, seed: int) -> None:
    """PyTorch's layers have one width; with embedding widths equal to the attention's, the closed form counts them."""
    (arch,) = space.sample(1, np.random.default_rng(seed))  # type: ignore[attr-defined]
    q = space.qkv_dim  # type: ignore[attr-defined]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in plain_stacks(arch, q).parameters())
    assert count_parameters(replace(arch, encoder_embed_dim=q, decoder_embed_dim=q), qkv_dim=q) == parameters


@settings(quick, max_examples=5)
@given(seeds, st.integers(1, 40))
def test_flops_are_torchs_matrix_products_and_a_little_more(seed: int, length: int) -> None:
    arch = replace(one(seed), encoder_embed_dim=512, decoder_embed_dim=512)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder, decoder = plain_stacks(arch, 512)
        states = [torch.empty(1, length, 512)]
        for layer in encoder:
            states.append(layer(states[-1]))
        x = torch.empty(1, length, 512)
        for layer, span in zip(decoder, arch.decoder_cross_spans, strict=True):
            x = layer(x, torch.cat(states[-SPAN_LAYERS[span] :], dim=1))
    elementwise = count_flops(arch, length=length) - counter.get_total_flops()
    once = 2 * (2 * 512 * length + 2 * length)
    per_layer = arch.encoder_layers * 2 * (3 * 512 * length + 3) + arch.decoder_layers * 2 * (5 * 512 * length + 6)
    assert elementwise == once + per_layer


@quick
@given(seeds, st.integers(1, 50_000), st.integers(1, 64))
def test_output_projection_and_length(seed: int, vocab_size: int, length: int) -> None:
    """The projection is one product per token; the rest is quadratic in the length, as attention is."""
    arch = one(seed)
    projection = count_flops(arch, vocab_size, length) - count_flops(arch, length=length)
    assert projection == 2 * length * arch.decoder_embed_dim * vocab_size
    f = [count_flops(arch, length=length + i) for i in range(4)]
    assert f[2] - 2 * f[1] + f[0] == f[3] - 2 * f[2] + f[1] > 0
    assert isinstance(count_flops(arch), int)
    assert isinstance(count_parameters(arch), int)
