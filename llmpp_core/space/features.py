"""Feature sets of architectures as scikit-learn transformers.

Each takes a sequence of n `Architecture` and returns a float array with one row per architecture; join them with
`sklearn.pipeline.make_union`. None learns anything from data, so all work without `fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.cost import flop_counts, parameter_counts
from llmpp_core.space.genes import columns_of
from llmpp_core.space.inputs import readable_again

#: Names and order of HAT's ten averaged features, those of its latency tables.
HAT_FEATURE_NAMES = (
    "encoder_embed_dim",
    "encoder_layers",
    "encoder_ffn_dim_mean",
    "encoder_heads_mean",
    "decoder_embed_dim",
    "decoder_layers",
    "decoder_ffn_dim_mean",
    "decoder_self_heads_mean",
    "decoder_cross_heads_mean",
    "decoder_cross_layers_mean",
)

# What is chosen in each layer, by the names of `ArchitectureTable.values`.
_LAYER_LISTS = {"encoder": ("ffn_dims", "heads"), "decoder": ("ffn_dims", "self_heads", "cross_heads", "cross_spans")}
# Spans by number of encoder layers attended to; 0 for none.
_SPANS = np.zeros(max(SPAN_LAYERS.values()) + 1, dtype=int)
_SPANS[list(SPAN_LAYERS.values())] = list(SPAN_LAYERS)


class ArchitectureTransformer(TransformerMixin, BaseEstimator):
    """What the transformers share: they are stateless and their input is a sequence of objects, not a matrix."""

    def fit(self, archs: Sequence[Architecture], y: Any = None) -> Self:
        """Do nothing; present for scikit-learn's contract."""
        return self

    @property
    def rising(self) -> np.ndarray:
        """Where a larger number means a larger network: everywhere but in numbers of heads, shape (columns,), bool."""
        return np.array(["heads" not in name for name in self.get_feature_names_out()])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags


class HATFeatures(ArchitectureTransformer):
    """HAT's ten averaged features, in the units of its latency tables.

    The last one is the mean number of encoder layers that the decoder layers attend to (1 to 3). Rows that already are
    such features, an (n, 10) array or a frame with columns of these names, pass through unchanged, since the latency tables hold
    nothing else.
    """

    def transform(self, archs: Sequence[Architecture] | np.ndarray | pd.DataFrame) -> np.ndarray:
        """Return an array of shape (n, 10); raises ValueError for another shape, a column that is missing, or other objects."""
        if isinstance(archs, pd.DataFrame):
            absent = [name for name in HAT_FEATURE_NAMES if name not in archs]
            if absent:
                raise ValueError(f"X: column {', '.join(absent)} is missing; expected {', '.join(HAT_FEATURE_NAMES)}")
            # By name: in another order they would be other features.
            return archs[list(HAT_FEATURE_NAMES)].to_numpy(dtype=float)
        array = np.asarray(archs) if hasattr(archs, "shape") else None
        if array is None or array.dtype == object:
            return _hat_rows(columns_of(readable_again(archs)))
        if array.ndim != 2 or array.shape[1] != len(HAT_FEATURE_NAMES):
            raise ValueError(f"expected a sequence of Architecture or an (n, {len(HAT_FEATURE_NAMES)}) array, got shape {array.shape}")
        return array.astype(float)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the ten names."""
        return np.array(HAT_FEATURE_NAMES, dtype=object)


def _hat_rows(known: Any) -> np.ndarray:
    def of(stack: str) -> list[np.ndarray]:
        depth = known.values(f"{stack}_layers")
        means = [known.values(f"{stack}_{name}").sum(axis=1) / depth for name in _LAYER_LISTS[stack]]
        return [known.values(f"{stack}_embed_dim"), depth, *means]

    return np.column_stack([*of("encoder"), *of("decoder")]).astype(float)


# Divisors of the paper's features: the largest value of each in the WMT space.
_OFFICIAL_DIVISORS = (640.0, 6.0, 3072.0, 8.0, 640.0, 6.0, 3072.0, 8.0, 8.0, 3.0)


class OfficialFeatures(ArchitectureTransformer):
    """The ten features of the paper's student: HAT's scaled to at most 1, but the last is (1 + mean span) / 3 with spans -1, 1, 2."""

    def transform(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n, 10)."""
        archs = readable_again(archs)
        rows, known = HATFeatures().transform(archs), columns_of(archs)
        rows[:, -1] = 1 + _SPANS[known.values("decoder_cross_spans")].sum(axis=1) / known.values("decoder_layers")
        return rows / _OFFICIAL_DIVISORS

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the ten names."""
        return np.array([*HAT_FEATURE_NAMES[:-1], "decoder_cross_span_mean"], dtype=object)


class LayerFeatures(ArchitectureTransformer):
    """Every choice of every layer, zeros where a layer is absent.

    Parameters
    ----------
    encoder_layers, decoder_layers : int
        Largest depths; the row has ``4 + 2 * encoder_layers + 4 * decoder_layers`` entries.
    """

    def __init__(self, encoder_layers: int = 6, decoder_layers: int = 6):
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers

    def transform(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n, 4 + 2 * encoder_layers + 4 * decoder_layers); raises ValueError for a deeper stack."""
        known = columns_of(readable_again(archs))
        for stack in ("encoder_layers", "decoder_layers"):
            deepest = known.values(stack).max(initial=0)
            if deepest > getattr(self, stack):
                raise ValueError(f"architecture has {deepest} {stack}, these features hold {getattr(self, stack)}")
        once = ("encoder_embed_dim", "decoder_embed_dim", "encoder_layers", "decoder_layers")
        blocks = [known.values(name)[:, None] for name in once]
        for stack, lists in _LAYER_LISTS.items():
            held = getattr(self, f"{stack}_layers")
            for name in lists:
                values = known.values(f"{stack}_{name}")[:, :held]
                blocks.append(np.pad(values, ((0, 0), (0, held - values.shape[1]))))
        return np.hstack(blocks).astype(float)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return one name per column, such as ``decoder_ffn_dims_0``."""
        names = ["encoder_embed_dim", "decoder_embed_dim", "encoder_layers", "decoder_layers"]
        names += [f"{name}_{i}" for name in ("encoder_ffn_dims", "encoder_heads") for i in range(self.encoder_layers)]
        lists = ("decoder_ffn_dims", "decoder_self_heads", "decoder_cross_heads", "decoder_cross_layers")
        names += [f"{name}_{i}" for name in lists for i in range(self.decoder_layers)]
        return np.array(names, dtype=object)


class CostFeatures(ArchitectureTransformer):
    """Natural logarithms of parameters and FLOPs, embeddings and output projection left out.

    Parameters
    ----------
    parameters, flops : bool
        Which columns to give.
    qkv_dim, length : int
        As in `llmpp_core.space.cost.count_flops`.
    """

    def __init__(self, parameters: bool = True, flops: bool = True, *, qkv_dim: int, length: int = 30):
        self.parameters = parameters
        self.flops = flops
        self.qkv_dim = qkv_dim
        self.length = length

    def transform(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n, 1 or 2)."""
        columns, archs = [], readable_again(archs)
        if self.parameters:
            columns.append(parameter_counts(archs, self.qkv_dim))
        if self.flops:
            columns.append(flop_counts(archs, length=self.length, qkv_dim=self.qkv_dim))
        if not columns:
            raise ValueError("CostFeatures: at least one of parameters and flops must be True")
        return np.log(np.array(columns, dtype=float).T)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the chosen columns."""
        return np.array(["log_parameters"] * self.parameters + ["log_flops"] * self.flops, dtype=object)


class DepthFeatures(ArchitectureTransformer):
    """Number of decoder layers.

    Parameters
    ----------
    log : bool
        Give its natural logarithm instead.
    """

    def __init__(self, log: bool = False):
        self.log = log

    def transform(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n, 1)."""
        depth = columns_of(readable_again(archs)).values("decoder_layers")[:, None].astype(float)
        return np.log(depth) if self.log else depth

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the one name."""
        return np.array(["log_decoder_layers" if self.log else "decoder_layers"], dtype=object)


class ScoreFeatures(ArchitectureTransformer):
    """Scores recorded elsewhere, such as the BLEU that supernets give, looked up by architecture.

    Parameters
    ----------
    scores : mapping of Architecture to sequence of k floats
        One row of scores per known architecture.
    """

    def __init__(self, scores: Mapping[Architecture, Sequence[float]]):
        self.scores = scores

    def transform(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n, k); raises KeyError if an architecture has no recorded score."""
        archs = readable_again(archs)
        missing = [arch for arch in archs if arch not in self.scores]
        if missing:
            raise KeyError(f"{len(missing)} of {len(archs)} architectures have no recorded score, the first: {missing[0]}")
        width = len(next(iter(self.scores.values()), ()))
        return np.array([self.scores[arch] for arch in archs], dtype=float).reshape(len(archs), width)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return one name per score, such as ``score_0``."""
        width = len(next(iter(self.scores.values()), ()))
        return np.array([f"score_{i}" for i in range(width)], dtype=object)


def _costs(space: Any) -> list[Any]:
    return [CostFeatures(qkv_dim=space.qkv_dim), DepthFeatures(log=True)]


def _layers(space: Any) -> list[Any]:
    return [LayerFeatures(max(space.encoder_layers), max(space.decoder_layers))]


#: Feature sets of HAT's spaces by name, each a function from the space to the transformers whose columns make up a row. "official" is
#: the paper's; "costs" the logarithms of parameters, FLOPs and decoder depth; "averages" those and HAT's ten; "layers" every
#: choice in every layer; "all" the last two together; "surrogate" these without the depth, for Bayesian optimisation.
HAT_FEATURE_SETS: dict[str, Callable[[Any], list[Any]]] = {
    "official": lambda space: [OfficialFeatures()],
    "costs": _costs,
    "averages": lambda space: [HATFeatures(), *_costs(space)],
    "layers": _layers,
    "all": lambda space: [*_layers(space), HATFeatures(), *_costs(space)],
    "surrogate": lambda space: [*_layers(space), HATFeatures(), _costs(space)[0]],
}
