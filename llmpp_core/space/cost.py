"""Parameters and FLOPs of an architecture in closed form.

The formulas reproduce the counts published with the paper to the last unit (tests check all 270 records). Symbols:
Q is the inner width of attention, De and Dd the encoder and decoder widths, F a feed-forward width, L the length of
source and target in tokens, S = L x {1, 2, 3} the number of encoder states a cross-attention reads, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmpp_core.space.architecture import Architecture
from llmpp_core.space.genes import columns_of
from llmpp_core.space.inputs import as_list


def count_parameters(arch: Architecture, qkv_dim: int = 512) -> int:
    """Count the trainable parameters of all layers, without the embeddings.

    Parameters
    ----------
    arch : Architecture
        The architecture.
    qkv_dim : int
        Inner width of every attention.

    Returns
    -------
    int
        Weights, biases and layer norms of the encoder and decoder layers.
    """
    return int(parameter_counts([arch], qkv_dim)[0])


def count_flops(arch: Architecture, vocab_size: int | None = None, length: int = 30, qkv_dim: int = 512) -> int:
    """Count the floating-point operations of one forward pass over a sentence pair, target given.

    A multiply-accumulate counts as two operations. Besides the matrix products the count holds the element-wise work
    that the upstream records hold (scaling embeddings and queries, layer norms); chapter 1 compares it with PyTorch's counter.

    Parameters
    ----------
    arch : Architecture
        The architecture.
    vocab_size : int, optional
        Size of the target vocabulary; adds the output projection. Left out by default.
    length : int
        Number of source and of target tokens; upstream uses 30 for WMT and 23 for IWSLT.
    qkv_dim : int
        Inner width of every attention.

    Returns
    -------
    int
        FLOPs; divide by 1e9 for GFLOPs.
    """
    return int(flop_counts([arch], vocab_size, length, qkv_dim)[0])


def parameter_counts(archs: Sequence[Architecture], qkv_dim: int = 512) -> np.ndarray:
    """Return `count_parameters` of many architectures, shape (n,)."""
    known = columns_of(as_list(archs))
    q, de, dd = qkv_dim, known.values("encoder_embed_dim")[:, None], known.values("decoder_embed_dim")[:, None]
    fe, fd = known.values("encoder_ffn_dims"), known.values("decoder_ffn_dims")
    encoder, decoder = _encoder_parameters(q, de, fe), _decoder_parameters(q, de, dd, fd)
    return np.where(fe > 0, encoder, 0).sum(axis=1) + np.where(fd > 0, decoder, 0).sum(axis=1)


def flop_counts(archs: Sequence[Architecture], vocab_size: int | None = None, length: int = 30, qkv_dim: int = 512) -> np.ndarray:
    """Return `count_flops` of many architectures, shape (n,)."""
    known = columns_of(as_list(archs))
    q, n, de, dd = qkv_dim, length, known.values("encoder_embed_dim")[:, None], known.values("decoder_embed_dim")[:, None]
    fe, fd, read = known.values("encoder_ffn_dims"), known.values("decoder_ffn_dims"), known.values("decoder_cross_layers")
    encoder, decoder = _encoder_macs(q, n, de, fe), _decoder_macs(q, n, de, dd, fd, n * read)
    layers = np.where(fe > 0, encoder, 0).sum(axis=1) + np.where(fd > 0, decoder, 0).sum(axis=1)
    return 2 * (_base_macs(n, de[:, 0], dd[:, 0], vocab_size) + layers)


# The formulas, for arrays. Macs are multiply-accumulates.


def _encoder_parameters(q: Any, de: Any, f: Any) -> Any:
    return 4 * q * de + 3 * q + 6 * de + 2 * de * f + f


def _decoder_parameters(q: Any, de: Any, dd: Any, f: Any) -> Any:
    return 6 * q * dd + 2 * q * de + 6 * q + 9 * dd + 2 * dd * f + f


def _base_macs(n: Any, de: Any, dd: Any, vocab_size: int | None) -> Any:
    return n * (de + dd) + 2 * n + (0 if vocab_size is None else n * dd * vocab_size)


def _encoder_macs(q: Any, n: Any, de: Any, f: Any) -> Any:
    return n * (4 * q * de + 2 * de * f) + 2 * n * n * q + n * q + 2 * n * de + 3


def _decoder_macs(q: Any, n: Any, de: Any, dd: Any, f: Any, s: Any) -> Any:
    return n * (6 * q * dd + 2 * dd * f) + 2 * s * q * de + 2 * n * n * q + 2 * n * s * q + 2 * n * q + 3 * n * dd + 6
