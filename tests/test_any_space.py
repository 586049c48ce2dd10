"""From prompts to searches in spaces that have nothing to do with HAT's, by the offline endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmpp_core.llm.client import Client
from llmpp_core.llm.offline import OfflineEndpoint, answer_prompt, offline_settings
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.llm.prompts import FORMS, LEVELS, Efficiency, PromptTask, build_prompt
from llmpp_core.predictors.baselines import TablePredictor
from llmpp_core.predictors.distill import MONOTONE, DistilledPredictor, distill
from llmpp_core.search.alternatives import BayesianSearch, LocalSearch
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.feasible import Feasible
from llmpp_core.search.finalists import finalists
from llmpp_core.search.limits import InfeasibleError, cost_limit, parameter_limit
from llmpp_core.search.pareto import ParetoSearch, pareto_front
from llmpp_core.space.choice import Choice
from llmpp_core.space.declared import DeclaredSpace
from llmpp_core.space.genes import Genes
from llmpp_core.space.grammar import read_space, space_from_record
from llmpp_core.space.search_space import HAT_WMT

SPACES = {name: read_space(Path(__file__).with_name("spaces") / f"{name}.yml") for name in ("small_gpts", "digit_cnns")}
WORDS = {"description": "next words that cost 5$", "metric": "perplexity", "metric_description": "on held-out text"}


def task(space: Any, **change: Any) -> PromptTask:
    told = Efficiency.of(space.costs["parameters"])
    settings = {"name": "t", **WORDS, "low": 0, "high": 200, "higher_is_better": False, "space": space, "efficiency": told}
    return PromptTask(**{**settings, **change})


def scores(networks: Any, space: DeclaredSpace) -> np.ndarray:
    """Minus the perplexity, which falls with size."""
    return -10 - 100 / (1 + np.log1p(space.costs["parameters"](networks)))


@pytest.mark.parametrize("name", SPACES)
def test_prompt_student_and_search(name: str, tmp_path: Path) -> None:
    space, rng = SPACES[name], np.random.default_rng(0)
    trained = space.sample_balanced(12, rng)
    with OfflineEndpoint() as url:
        llm = LLMPredictor(Client(offline_settings(url)), task(space), form="json", demonstrations=10, choice="spread")
        llm.fit(trained, scores(trained, space))
        assert llm.predict(trained) == pytest.approx(scores(trained, space), abs=1.5)
        student = distill(llm, space, 150, rng, student=DistilledPredictor(features="averages", steps=60))
    student.save(tmp_path / "student")
    assert (DistilledPredictor.load(tmp_path / "student").predict(trained) == student.predict(trained)).all()
    limit = parameter_limit(space, float(np.median(space.costs["parameters"](trained))))
    searches: list[Any] = [
        EvolutionarySearch(space, [(student, 8)], limit, population=40, parents=10, mutants=15, crossovers=15),
        LocalSearch(space, student, limit, evaluations=150, batch=50),
        BayesianSearch(space, student, limit, evaluations=100, batch=50),
    ]
    drawn = space.sample(500, rng)
    within = limit.costs(drawn) <= limit.limit
    for i, search in enumerate(searches):
        found = search.run(tmp_path / f"{i}.jsonl")
        assert found.best in space
        assert limit.costs([found.best])[0] == found.costs["parameters"] <= limit.limit
        assert found.score > np.quantile(student.predict(drawn)[within], 0.95)
        assert search.run(tmp_path / f"{i}.jsonl").best == found.best
    front = pareto_front(list(ParetoSearch(space, student, [limit], population=20, iterations=4)), space)
    assert front["score"].is_monotonic_decreasing
    assert front["parameters"].is_monotonic_decreasing
    with pytest.raises(InfeasibleError, match=f"parameters: {space.name} has no architecture within") as error:
        EvolutionarySearch(space, [(student, 1)], cost_limit(space, "parameters", 1e-3)).run()
    assert error.value.cost == pytest.approx(min(space.costs["parameters"](space.sample(5000, rng))))
    with pytest.raises(ValueError, match=r"limit 'latency': no such cost of .*; costs are parameters, "):
        cost_limit(space, "latency", 3)


def test_every_prompt_says_what_the_space_is() -> None:
    space = SPACES["digit_cnns"]
    networks = space.sample(3, np.random.default_rng(0))
    shown = list(zip(networks, scores(networks, space), strict=True))
    for level in LEVELS:
        for form in FORMS:
            prompt = build_prompt(task(space), shown, networks[:1], level, form)
            assert answer_prompt(prompt.text, as_json=form == "json")
    text = build_prompt(task(space), shown, networks[:1]).text
    assert "one backbone, a convolutional network for grey images of 8x8 pixels, and" in text
    assert "- kernel lists, for each layer, first layer first, the side of its square kernel.\n" in text
    assert "- hidden_width is the width of that hidden layer; only where hidden == 'yes'.\n" in text
    assert "next words that cost 5$." in text
    nameless = build_prompt(task(space, efficiency=None).anonymous(), shown, networks[:1]).text
    assert not {"encoder", "sequence", "parameters", "convolutional", "perplexity"} & set(nameless.replace("-", " ").split())


def test_a_network_of_another_space_is_refused_before_anything_is_asked() -> None:
    space = SPACES["small_gpts"]
    networks = space.sample(5, np.random.default_rng(0))
    foreign = [*networks[:2], HAT_WMT.smallest()]
    with pytest.raises(ValueError, match=r"archs\[2\]: "):
        LLMPredictor(None, task(space)).fit(foreign, [-1.0, -2.0, -3.0])
    with pytest.raises(ValueError, match=r"archs\[0\]: expected an Architecture, got Network"):
        LLMPredictor(None, task(HAT_WMT)).fit(networks, -np.arange(1.0, 6.0))
    with pytest.raises(ValueError, match="unknown choice 'blocks'"):
        DistilledPredictor(space=space).fit(SPACES["digit_cnns"].sample(9, np.random.default_rng(0)), np.arange(9.0))
    with pytest.raises(ValueError, match="space: expected the space of the architectures"):
        DistilledPredictor().fit(networks, np.arange(5.0))
    with pytest.raises(ValueError, match="'width' is a choice of small GPTs"):
        task(space, metric="width")


def test_a_monotone_student_never_falls_where_more_means_larger() -> None:
    space, rng = SPACES["small_gpts"], np.random.default_rng(0)
    networks = space.sample(100, rng)
    student = DistilledPredictor(space=space, features="averages", **{**MONOTONE, "steps": 60})
    student.fit(networks, scores(networks, space) + rng.normal(size=100))
    wider = [space.read({**network, "width": 512, "ffn": 2048}) for network in networks]
    assert (student.predict(wider) >= student.predict(networks) - 1e-9).all()


def test_the_smallest_and_the_largest_are_what_they_say() -> None:
    space = SPACES["small_gpts"]
    costs = space.costs["parameters"](space.sample(2000, np.random.default_rng(0)))
    ends = space.costs["parameters"]([space.smallest(), space.largest()])
    assert ends[0] <= costs.min() < costs.max() <= ends[1]
    assert dict(space.largest()) == {"layers": 12, "width": 512, "ffn": (2048,) * 12, "heads": (8,) * 12}


def test_rules_that_tie_choices_hide_nothing() -> None:
    """Single changes lead nowhere where two choices must be equal, so what is within a limit is found by chance."""
    tied = DeclaredSpace(
        "tied",
        [*(Choice(name, range(1, 33)) for name in "ab"), *(Choice(f"c{i}", range(1, 5)) for i in range(6))],
        rules=["a == b", "a >= 3"],
        costs={"size": "a*a + c0 + c1 + c2 + c3 + c4 + c5"},
    )
    rows, costs = Feasible(Genes(tied), [cost_limit(tied, "size", 40)]).initial(20, np.random.default_rng(0))
    assert len(rows) == 20
    assert costs.max() <= 40
    with pytest.raises(InfeasibleError, match="tied has no architecture within 2"):
        Feasible(Genes(tied), [cost_limit(tied, "size", 2)]).initial(20, np.random.default_rng(0))
    few = DeclaredSpace("few", [*(Choice(name, range(62)) for name in "abc"), Choice("d", range(5))], rules=["a == b", "b*(d >= 0) == c"])
    with pytest.raises(ValueError, match="few seems to hold 310 networks that keep its rules, too few for 400"):
        few.sample_balanced(400, np.random.default_rng(0))


def test_a_rule_is_about_networks_that_make_its_choices() -> None:
    space = DeclaredSpace("optional", [Choice("d", [False, True]), Choice("rate", [0, 0.1, 1], when="d == 1")], rules=["rate >= 0.1"])
    assert space.size() == 3
    assert dict(space.read({"d": False})) == {"d": False}
    with pytest.raises(ValueError, match=r'breaks the rule "rate >= 0.1"'):
        space.read({"d": True, "rate": 0})
    assert space_from_record(DeclaredSpace("words", [Choice("k", ["3", "5"])]).to_record()).choices[0].values == ("3", "5")


def test_finalists_are_of_several_kinds_also_where_kinds_have_no_numbers() -> None:
    kinds = DeclaredSpace(
        "kinds", [Choice("kind", ["conv", "att", "mlp"]), Choice("n", range(20)), Choice("rate", [1, 2], when="kind == 'att'")]
    )
    predictor = TablePredictor({net: 100 * (net["kind"] == "conv") + net["n"] for net in kinds.build(Genes(kinds).everything())})
    found = EvolutionarySearch(kinds, [(predictor, 3)], population=60, parents=10, mutants=20, crossovers=20).run()
    chosen = finalists(found, Genes(kinds), 9, 3)
    assert sorted(net["kind"] for net in chosen) == ["att"] * 3 + ["conv"] * 3 + ["mlp"] * 3


def test_depths_between_those_proposed_are_whole_and_gates_are_counted_as_they_are_made() -> None:
    space = DeclaredSpace("deep", [Choice("d", [2, 6], bounds=(2, 6)), Choice("w", [1, 2], per="d")])
    assert space.read({"d": 4, "w": [1, 2, 2, 1]}).d == 4
    with pytest.raises(ValueError, match=r"d is 3.5; allowed are 2, 6, and numbers from 2 to 6 of trained networks, whole ones"):
        space.read({"d": 3.5, "w": [1, 2, 2]})
    # One after the other they have 23 combinations, side by side more than can be listed.
    nested = [Choice("f0", [0, 1]), *(Choice(f"f{i}", [0, 1], when=f"f{i - 1} == 1") for i in range(1, 22))]
    assert DeclaredSpace("nested", nested).size() == 23
    flags = [part for i in range(20) for part in (Choice(f"f{i}", [0, 1]), Choice(f"x{i}", [1, 2], when=f"f{i} == 1"))]
    with pytest.raises(ValueError, match=r"f0, f1, .* on which others depend, have more than 1,000,000 combinations"):
        DeclaredSpace("flags", flags)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "global", "values": [1, 2]}, "choice 'global': a name has letters"),
        ({"name": "a", "values": [1, 2], "bounds": 5}, "'a': bounds"),
        *(({"name": "a", "values": [1, 2], "bounds": bounds}, "'a': bounds") for bounds in ([5], [2, 1])),
        ({"name": "a", "values": {"x", "y"}}, "'a': expected a list of values"),
    ],
)
def test_choices_that_cannot_be(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choice(**choice)


RULED = """
space: stacks
choices:
  deep: {values: ['yes', 'no']}
  layers: {values: [1, 2], when: deep == 'yes'}
  kind: {values: [conv, pool], per: layers}
  kernel: {values: [3, 5], per: layers, before: 3, when: kind == 'conv'}
rules: [RULE]
"""


@pytest.mark.parametrize(
    ("rule", "size"),
    [
        # One network without layers, three of one layer, nine of two.
        ("kernel_first >= 5", 1 + 2 + 6),
        ("kernel_last >= 5", 1 + 2 + 6),
        ("kernel >= 5", 1 + 2 + 4),
        ("kernel_before <= 3", 1 + 3 + 7),
    ],
)
def test_a_rule_is_for_what_makes_the_choices_that_it_names(rule: str, size: int) -> None:
    space = read_space(RULED.replace("RULE", rule))
    assert space.size() == size
    assert space.read({"deep": "no"}) in space


def test_a_depth_is_told_by_lists_of_which_some_end_early() -> None:
    space = read_space(RULED.replace("RULE", "layers > 0"))
    told = {"deep": "yes", "kind_0": "conv", "kind_1": "pool", "kernel_0": "3", "kernel_1": ""}
    assert space.read(told) == space.read({"deep": "yes", "layers": 2, "kind": ["conv", "pool"], "kernel": [3, None]})


def test_one_rule_is_a_list_too() -> None:
    with pytest.raises(ValueError, match="rules: expected a list of formulas, got 'a < b'"):
        DeclaredSpace("s", [Choice("a", [1, 2]), Choice("b", [1, 2])], rules="a < b")
