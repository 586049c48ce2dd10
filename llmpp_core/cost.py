"""Parameters and FLOPs of an architecture in closed form.

The formulas reproduce the counts published with the paper to the last unit (tests check all 270 records). Symbols:
Q is the inner width of attention, De and Dd the encoder and decoder widths, F a feed-forward width, L the length of
source and target in tokens, S = L x {1, 2, 3} the number of encoder states a cross-attention reads, V the vocabulary.
"""

from __future__ import annotations

from llmpp_core.space import SPAN_LAYERS, Architecture


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
    q, de, dd = qkv_dim, arch.encoder_embed_dim, arch.decoder_embed_dim
    encoder = sum(4 * q * de + 3 * q + 6 * de + 2 * de * f + f for f in arch.encoder_ffn_dims)
    decoder = sum(6 * q * dd + 2 * q * de + 6 * q + 9 * dd + 2 * dd * f + f for f in arch.decoder_ffn_dims)
    return encoder + decoder


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
    q, n, de, dd = qkv_dim, length, arch.encoder_embed_dim, arch.decoder_embed_dim
    macs = n * (de + dd) + 2 * n
    if vocab_size is not None:
        macs += n * dd * vocab_size
    for f in arch.encoder_ffn_dims:
        macs += n * (4 * q * de + 2 * de * f) + 2 * n * n * q + n * q + 2 * n * de + 3
    for f, span in zip(arch.decoder_ffn_dims, arch.decoder_cross_spans, strict=True):
        s = n * SPAN_LAYERS[span]
        macs += n * (6 * q * dd + 2 * dd * f) + 2 * s * q * de + 2 * n * n * q + 2 * n * s * q + 2 * n * q + 3 * n * dd + 6
    return 2 * macs
