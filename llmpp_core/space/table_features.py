"""Features of the networks of a declared space, as scikit-learn transformers; HAT's are in `llmpp_core.space.features`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpp_core.space.choice import Choice
from llmpp_core.space.features import ArchitectureTransformer
from llmpp_core.space.inputs import readable_again

if TYPE_CHECKING:
    from llmpp_core.space.declared import DeclaredSpace

#: Names of feature sets, and the kinds of columns that each holds.
FEATURE_SETS = {
    "costs": ("costs",),
    "averages": ("averages", "costs"),
    "layers": ("layers",),
    "all": ("layers", "averages", "costs"),
    "surrogate": ("layers", "averages", "costs"),
}


class TableFeatures(ArchitectureTransformer):
    """Columns of one kind, made of the choices of a space.

    Parameters
    ----------
    space : DeclaredSpace
    kind : {"costs", "averages", "layers"}
        The logarithms of the costs that are formulas and of the depths; or every choice, those of layers as means over the layers that
        make them; or every choice in every layer, 0 where it is not made. A category has one column per value, of 0 and 1 or shares.
    """

    def __init__(self, space: DeclaredSpace, kind: str):
        self.space = space
        self.kind = kind

    def transform(self, archs: Sequence[Any]) -> np.ndarray:
        """Return an array of shape (n, columns); raises ValueError for what is no network of the space."""
        columns = self.space.columns(readable_again(archs, object))
        found = self._costs(columns) if self.kind == "costs" else [x for c in self.space.choices for x in self._of(c, columns)]
        return np.column_stack([np.empty((len(columns), 0)), *found]).astype(float)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return one name per column, such as ``ffn_mean``, ``ffn_0`` or ``pool=max``."""
        return np.array([name for name, _ in self._columns()], dtype=object)

    @property
    def rising(self) -> np.ndarray:
        """Where a larger number means a larger network, shape (columns,), bool."""
        return np.array([order == "more" for _, order in self._columns()], dtype=bool)

    def _formulas(self) -> list[str]:
        return [name for name, cost in self.space.costs.items() if cost.kind == "formula"]

    def _columns(self) -> list[tuple[str, str]]:
        """Return name and order of each column."""
        if self.kind == "costs":
            depths = [(f"log_{depth}", self.space.by_name[depth].order) for depth in self.space.depths]
            return [*((f"log_{name}", "more") for name in self._formulas()), *depths]
        found = []
        for choice in self.space.choices:
            layers = range(int(self.space.layers[choice.per].max())) if choice.per else ()
            parts = [f"_{i}" for i in layers] if self.kind == "layers" and choice.per else ["_mean" if choice.per else ""]
            values = [""] if choice.numbers is not None else [f"={value}" for value in choice.values]
            found += [(choice.name + part + value, choice.order) for part in parts for value in values]
        return found

    def _costs(self, columns: Any) -> list[np.ndarray]:
        costs = [self.space.costs[name].function(columns) for name in self._formulas()]
        depths = [columns.values(depth) for depth in self.space.depths]
        # An absent depth counts as the layer that it has not.
        return [*(np.log(cost) for cost in costs), *(np.log(np.maximum(depth, 1.0)) for depth in depths)]

    def _of(self, choice: Choice, columns: Any) -> list[np.ndarray]:
        positions = columns.positions(choice.name)
        if choice.numbers is not None:
            found = columns.values(choice.name).reshape(positions.shape)[:, :, None].astype(float)
        else:
            found = (positions[:, :, None] == np.arange(len(choice.values))).astype(float)
        if choice.per and self.kind == "averages":
            made = (positions >= 0).sum(axis=1)
            found = found.sum(axis=1, keepdims=True) / np.maximum(made, 1)[:, None, None]
        return [found.reshape(len(columns), found.shape[1] * found.shape[2])]
