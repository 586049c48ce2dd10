"""What networks cost: of any space by `Cost`, and of HAT's architectures parameters and FLOPs in closed form.

The formulas of the latter reproduce the counts published with the paper to the last unit (tests check all 270 records). Symbols:
Q is the inner width of attention, De and Dd the encoder and decoder widths, F a feed-forward width, L the length of
source and target in tokens, S = L x {1, 2, 3} the number of encoder states a cross-attention reads, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import numpy as np

from llmpp_core.space.architecture import Architecture
from llmpp_core.space.choice import Space
from llmpp_core.space.genes import ArchitectureTable, columns_of
from llmpp_core.space.inputs import as_list


@dataclass(frozen=True, eq=False)
class Cost:
    """A cost of the networks of one space.

    Parameters
    ----------
    name : str
        For errors and tables.
    function : callable
        From a sequence of n networks to n numbers. One that has an attribute ``table = True`` may get an `ArchitectureTable` as it is.
    space : Space
        Whose networks it takes; a table of another space is refused.
    unit : str
        Shown behind numbers.
    kind : {"formula", "python", "fitted"}
        Where it comes from; a feature is made of the first kind only, which is exact and quick.
    """

    name: str
    function: Callable[[Any], Any]
    space: Space
    unit: str = ""
    kind: str = "formula"

    def __deepcopy__(self, memo: Any) -> Cost:
        return self

    def __reduce__(self) -> Any:
        # A formula is made again by its space.
        own = self.space.costs.get(self.name) is self
        return (getitem, (self.space.costs, self.name)) if own else (Cost, (self.name, self.function, self.space, self.unit, self.kind))

    def __call__(self, networks: Sequence[Any]) -> np.ndarray:
        """Return the costs of n networks, shape (n,).

        Raises
        ------
        ValueError
            If they are a table of another space, or a cost is nan, or there are not n of them.
        """
        if isinstance(networks, ArchitectureTable) and networks.space != self.space:
            raise ValueError(f"cost {self.name!r} is one of {self.space.name}, the networks are of {networks.space.name}")
        given = networks if self.kind == "formula" or getattr(self.function, "table", False) else list(networks)
        try:
            found = np.asarray(self.function(given), dtype=float)
        except Exception as error:
            if self.kind == "formula":
                raise
            raise ValueError(f"cost {self.name!r}: it raised {type(error).__name__}: {error}; it is called with many networks") from error
        if found.shape != (len(networks),):
            raise ValueError(f"cost {self.name!r}: expected {len(networks)} numbers, one per network, got shape {found.shape}")
        if np.isnan(found).any():
            raise ValueError(f"cost {self.name!r} is nan for {networks[int(np.argmax(np.isnan(found)))]}")
        return found


class Costs(dict[str, Cost]):
    """The costs of a space by name; asking for another names those that there are."""

    def __init__(self, space: Space, costs: Iterable[Cost]):
        super().__init__({cost.name: cost for cost in costs})
        self._space = space

    def __missing__(self, name: str) -> Cost:
        raise KeyError(f"{self._space.name} has no cost {name!r}; it has {', '.join(self) or 'none'}")

    def __reduce__(self) -> Any:
        return getattr, (self._space, "costs")


def count_parameters(arch: Architecture, qkv_dim: int) -> int:
    """Count the trainable parameters of all layers, without the embeddings.

    Parameters
    ----------
    arch : Architecture
    qkv_dim : int
        Inner width of every attention: `SearchSpace.qkv_dim`.

    Returns
    -------
    int
        Weights, biases and layer norms of the encoder and decoder layers.
    """
    return int(parameter_counts([arch], qkv_dim)[0])


def count_flops(arch: Architecture, vocab_size: int | None = None, length: int = 30, *, qkv_dim: int) -> int:
    """Count the floating-point operations of one forward pass over a sentence pair, target given.

    A multiply-accumulate counts as two operations. Besides the matrix products the count holds the element-wise work
    that the upstream records hold (scaling embeddings and queries, layer norms); chapter 1 compares it with PyTorch's counter.

    Parameters
    ----------
    arch : Architecture
    vocab_size : int, optional
        Size of the target vocabulary; adds the output projection. Left out by default.
    length : int
        Number of source and of target tokens; upstream uses 30 for WMT and 23 for IWSLT.
    qkv_dim : int
        Inner width of every attention: `SearchSpace.qkv_dim`.

    Returns
    -------
    int
        FLOPs; divide by 1e9 for GFLOPs.
    """
    return int(flop_counts([arch], vocab_size, length, qkv_dim=qkv_dim)[0])


def parameter_counts(archs: Sequence[Architecture], qkv_dim: int) -> np.ndarray:
    """Return `count_parameters` of many architectures, shape (n,)."""
    known = columns_of(as_list(archs, kind=Architecture))
    q, de, dd = qkv_dim, known.values("encoder_embed_dim")[:, None], known.values("decoder_embed_dim")[:, None]
    fe, fd = known.values("encoder_ffn_dims"), known.values("decoder_ffn_dims")
    encoder = 4 * q * de + 3 * q + 6 * de + 2 * de * fe + fe
    decoder = 6 * q * dd + 2 * q * de + 6 * q + 9 * dd + 2 * dd * fd + fd
    return np.where(fe > 0, encoder, 0).sum(axis=1) + np.where(fd > 0, decoder, 0).sum(axis=1)


def flop_counts(archs: Sequence[Architecture], vocab_size: int | None = None, length: int = 30, *, qkv_dim: int) -> np.ndarray:
    """Return `count_flops` of many architectures, shape (n,)."""
    known = columns_of(as_list(archs, kind=Architecture))
    q, n, de, dd = qkv_dim, length, known.values("encoder_embed_dim")[:, None], known.values("decoder_embed_dim")[:, None]
    fe, fd, s = known.values("encoder_ffn_dims"), known.values("decoder_ffn_dims"), n * known.values("decoder_cross_spans")
    # Multiply-accumulates.
    encoder = n * (4 * q * de + 2 * de * fe) + 2 * n * n * q + n * q + 2 * n * de + 3
    decoder = n * (6 * q * dd + 2 * dd * fd) + 2 * s * q * de + 2 * n * n * q + 2 * n * s * q + 2 * n * q + 3 * n * dd + 6
    once = n * (de + dd + 2 + dd * (vocab_size or 0))[:, 0]
    return 2 * (once + np.where(fe > 0, encoder, 0).sum(axis=1) + np.where(fd > 0, decoder, 0).sum(axis=1))
