"""What a predictor has learned: its mean prediction as a function of each choice of a search space.

scikit-learn's `partial_dependence` varies columns of a matrix. Predictors here see architectures, whose features depend on
each other, so it is the architectures that are varied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd

from llmpp_core.space.architecture import Architecture
from llmpp_core.space.inputs import as_list
from llmpp_core.space.search_space import SearchSpace


def partial_dependence(predictor: Any, space: SearchSpace, archs: Sequence[Architecture]) -> pd.DataFrame:
    """Predict what every single choice does: the mean score when it takes each of its values, all else as it is.

    Parameters
    ----------
    predictor : fitted regressor over Architecture
    space : SearchSpace
        Its choices and their values are tried; those made per layer are set in all layers of a stack. A stack made deeper
        repeats its layers from the first, one made shallower loses the last.
    archs : sequence of n Architecture
        The sample that predictions are averaged over.

    Returns
    -------
    pandas.DataFrame
        One row per choice and value: choice, value, mean and std of the n predictions.
    """
    rows, archs = [], as_list(archs)
    for choice in dict.fromkeys(name for name, _ in space.genes):
        for value in sorted(getattr(space, choice)):
            scores = predictor.predict([_with_choice(arch, choice, value) for arch in archs])
            rows.append({"choice": choice, "value": value, "mean": float(np.mean(scores)), "std": float(np.std(scores))})
    return pd.DataFrame(rows)


def _with_choice(arch: Architecture, choice: str, value: int) -> Architecture:
    changes: dict[str, Any]
    if choice.endswith("_layers"):
        stack = choice.removesuffix("layers")
        lists = {field.name: getattr(arch, field.name) for field in fields(arch) if field.name.startswith(stack)}
        changes = {k: tuple(v[i % len(v)] for i in range(value)) for k, v in lists.items() if isinstance(v, tuple)}
    elif choice.endswith("_embed_dim"):
        changes = {choice: value}
    else:
        changes = {choice: (value,) * len(getattr(arch, choice))}
    return replace(arch, **changes)
