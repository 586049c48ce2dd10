"""ConfigSpace's spaces as declared ones: the same networks, whatever names and conditions say."""

from __future__ import annotations

import re
import warnings
from typing import Any

import ConfigSpace as cs
import numpy as np
import pytest

from llmpp_core.space.configspace import from_configspace
from llmpp_core.space.genes import Genes


def gpts() -> cs.ConfigurationSpace:
    """The space of the decoder-only language models, flat as ConfigSpace has it."""
    space, depths = cs.ConfigurationSpace(name="small GPTs", seed=0), [2, 4, 6, 8, 12]
    layers = cs.OrdinalHyperparameter("layers", depths)
    space.add(layers, cs.OrdinalHyperparameter("width", [256, 384, 512]))
    for i in range(12):
        parts = cs.OrdinalHyperparameter(f"ffn_{i}", [1024, 2048]), cs.CategoricalHyperparameter(f"heads_{i}", [4, 8])
        space.add(*parts)
        deeper = [depth for depth in depths if depth > i]
        for part in parts if len(deeper) < len(depths) else ():
            one = len(deeper) == 1
            space.add(cs.EqualsCondition(part, layers, 12) if one else cs.InCondition(part, layers, deeper))
    return space


def mixed() -> cs.ConfigurationSpace:
    space = cs.ConfigurationSpace(name="mixed", seed=0)
    kind, bias = cs.CategoricalHyperparameter("kind", ["adam", "sgd", "none"]), cs.CategoricalHyperparameter("bias", [True, False])
    size, momentum = cs.UniformIntegerHyperparameter("size", 1, 5), cs.UniformFloatHyperparameter("momentum", 0.1, 0.9)
    grade, large = cs.OrdinalHyperparameter("grade", ["low", "mid", "top"]), cs.UniformIntegerHyperparameter("large", 1, 100)
    space.add(kind, bias, size, momentum, grade, large, cs.UniformFloatHyperparameter("rate", 1e-4, 1e-1, log=True), cs.Constant("k", 3))
    space.add(cs.AndConjunction(cs.EqualsCondition(momentum, kind, "sgd"), cs.GreaterThanCondition(momentum, size, 2)))
    space.add(cs.OrConjunction(cs.InCondition(large, kind, ["adam", "sgd"]), cs.EqualsCondition(large, bias, True)))
    space.add(cs.LessThanCondition(grade, size, 4))
    space.add(cs.ForbiddenAndConjunction(cs.ForbiddenEqualsClause(kind, "adam"), cs.ForbiddenInClause(size, [4, 5])))
    return space


STEPS = {"momentum": 5, "rate": 4, "large": 10}


def test_flat_hyperparameters_of_layers_become_one_choice() -> None:
    space = from_configspace(gpts(), order=["layers", "width"], costs={"area": {"layers": "ffn*width"}})
    assert space.size() == 50_541_360
    assert [(c.name, c.values, c.per, c.order) for c in space.choices] == [
        ("layers", (2, 4, 6, 8, 12), None, "more"),
        ("width", (256, 384, 512), None, "more"),
        ("ffn", (1024, 2048), "layers", "more"),
        ("heads", (4, 8), "layers", "none"),
    ]
    for configuration in gpts().sample_configuration(50):
        network = space.read(configuration)
        assert network.ffn == tuple(configuration[f"ffn_{i}"] for i in range(configuration["layers"]))
        assert space.row(network)


@pytest.mark.parametrize(("make", "steps"), [(gpts, {}), (mixed, STEPS)])
def test_the_same_is_active_and_allowed(make: Any, steps: dict[str, int]) -> None:
    space = from_configspace(make(), steps=steps)
    for configuration in make().sample_configuration(200):
        active = {re.sub(r"_\d+$", "", name) for name in dict(configuration)}
        assert set(space.read(configuration)) == active
    if steps:
        rows = Genes(space).everything()
        assert len(rows) == space.size()
        for network in Genes(space).table(rows[:: len(rows) // 100]):
            cs.Configuration(make(), values=dict(network)).check_valid_configuration()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": {"momentum": 5, "rate": 4}}, "'large' has 100 values; give steps={'large': 9}"),
        ({"steps": {"large": 10, "rate": 4}}, "'momentum' is continuous; give steps={'momentum': 9}"),
        ({"steps": {**STEPS, "lr": 3}}, "steps: 'lr' is no hyperparameter; there are "),
        ({"steps": {**STEPS, "rate": 0}}, "steps: 'rate': expected a whole number from 2 to 62, got 0"),
        ({"steps": {**STEPS, "kind": 3}}, "steps: 'kind' is no range that could be divided"),
        ({"steps": STEPS, "order": ["kind", "width"]}, "order: width is no choice; choices are bias, "),
    ],
)
def test_what_cannot_be_imported_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        from_configspace(mixed(), **settings)
    with pytest.raises(ValueError, match=r"expected a ConfigSpace.ConfigurationSpace, got dict"):
        from_configspace({})


def test_priors_are_warned_of() -> None:
    space = cs.ConfigurationSpace(seed=0)
    space.add(cs.CategoricalHyperparameter("kind", ["a", "b"], weights=[1, 2]))
    with pytest.warns(UserWarning, match="'kind': its prior or weights are not kept"):
        drawn = from_configspace(space).sample(1000, np.random.default_rng(0))
    assert 400 < sum(network.kind == "a" for network in drawn) < 600
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_configspace(gpts())
