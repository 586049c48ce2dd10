"""Declared spaces: the stated examples to the last number, one object per network, moves that stay inside, and bad input in one line."""

from __future__ import annotations

import copy
import pickle
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpleeval
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import MINI

from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import cost_limit
from llmpp_core.space.choice import Choice
from llmpp_core.space.cost import count_parameters
from llmpp_core.space.declared import DeclaredSpace
from llmpp_core.space.formulas import NODES, Evaluator, Formula
from llmpp_core.space.genes import Genes
from llmpp_core.space.grammar import read_space, space_from_record
from llmpp_core.space.search_space import HAT_WMT, TINY

FOLDER = Path(__file__).with_name("spaces")
GPTS, CNNS, HAT_LIKE = (read_space(FOLDER / f"{name}.yml") for name in ("small_gpts", "digit_cnns", "hat_like"))
# Every kind of dependence: a depth that may be absent, conditions on several and on choices of the same layer, rules, a range.
KNOTTY = read_space("""
space: knotty
choices:
  kind: [plain, deep, deeper]
  size: [1, 2, 3]
  bias: {values: [true, false]}
  layers: {values: [1, 2, 3], when: (kind == 'deep') + (kind == 'deeper')}
  extra: {values: [a, b], when: (size > 1)*(bias == 0)}
  gated: {values: ['on', 'off'], per: layers}
  width: {values: [4, 8, 16], per: layers, when: gated == 'on', before: 2}
  rate: {range: [0.001, 0.1], steps: 3, log: true}
  last: {values: [7, 9], when: extra != 'a'}
rules: [size + layers != 4, width != 8*(size == 1)]
costs:
  area: {once: 1 + size*rate + width_last + layers, layers: width*width_before*layer}
""")
SPACES = {space.name: space for space in (GPTS, CNNS, KNOTTY, HAT_LIKE, MINI)}
quick = settings(max_examples=15)
spaces, seeds = st.sampled_from(list(SPACES)), st.integers(0, 2**32 - 1)


@cache
def genes_of(name: str) -> Genes:
    return Genes(SPACES[name])


def test_examples_are_counted_and_costed_as_stated() -> None:
    assert (GPTS.size(), CNNS.size(), HAT_LIKE.size()) == (50_541_360, 1_548, HAT_WMT.size())
    small = GPTS.read({"layers": 2, "width": 256, "ffn": [1024, 2048], "heads": 4})
    assert GPTS.costs["parameters"]([small])[0] == pytest.approx(1e-6 * (32000 * 256 + 2 * 4 * 256**2 + 2 * 256 * (1024 + 2048)))
    cnn = CNNS.read({"blocks": 2, "channels": [8, 16], "kernel": [3, 5], "pool": "max", "hidden": "yes", "hidden_width": 32})
    by_hand = (9 * 1 * 8 + 8) + (25 * 8 * 16 + 16) + (16 * 32 + 32) + (10 * 32 + 10)
    assert CNNS.costs["parameters"]([cnn])[0] == by_hand
    assert CNNS.costs["MACs"]([cnn])[0] == 64 * (9 * 8 + 25 * 8 * 16)


def test_costs_of_the_space_like_hats_are_hats() -> None:
    names = {"encoder_width": "encoder_embed_dim", "decoder_width": "decoder_embed_dim", "encoder_ffn": "encoder_ffn_dims"}
    names |= {"decoder_ffn": "decoder_ffn_dims", "self_heads": "decoder_self_heads", "cross_heads": "decoder_cross_heads"}
    names |= {"cross_span": "decoder_cross_spans"}
    archs = HAT_WMT.sample(50, np.random.default_rng(0))
    networks = [HAT_LIKE.read({c.name: getattr(a, names.get(c.name, c.name)) for c in HAT_LIKE.choices}) for a in archs]
    assert HAT_LIKE.costs["parameters"](networks).tolist() == [count_parameters(arch, HAT_WMT.qkv_dim) for arch in archs]


@quick
@given(spaces, seeds)
def test_moves_stay_in_the_space_and_every_form_of_a_network_is_it(name: str, seed: int) -> None:
    space, genes, rng = SPACES[name], genes_of(name), np.random.default_rng(seed)
    a, b = genes.sample(30, rng), genes.sample(30, rng)
    near, origins, changed = genes.neighbours(a[:3])
    assert (near[np.arange(len(near)), changed] != a[origins, changed]).all()
    for rows in (a, genes.mutate(a, rng, 0.3), genes.crossover(a, b, rng), near):
        networks = list(genes.table(rows))
        assert np.array_equal(genes.canonical(rows), rows)
        assert np.array_equal(genes.encode(networks), rows)
        assert np.array_equal(genes.from_text(genes.to_text(rows)), rows)
        assert len(set(networks)) == len(set(genes.to_text(rows)))
        assert [space.read(space.lines(network)) for network in networks] == networks
        for cost in space.costs.values():
            assert cost(genes.table(rows)) == pytest.approx(cost(networks))
        for part in (part for which in ("costs", "averages", "layers", "all") for part in space.feature_set(which)):
            features = part.transform(genes.table(rows))
            assert np.allclose(features, part.transform(networks))
            assert features.shape[1] == len(part.get_feature_names_out()) == len(part.rising)
    assert np.array_equal(genes.mutate(a, rng, 1e-9), a)
    assert np.array_equal(genes.crossover(a, a, rng), a)


@pytest.mark.parametrize("name", ["digit CNNs", "knotty", "MINI"])
def test_all_networks_are_listed_once_and_reached_by_sampling(name: str) -> None:
    genes, space = genes_of(name), SPACES[name]
    listed = genes.to_text(genes.everything())
    assert len(set(listed)) == len(listed) == space.size()
    drawn = set(genes.to_text(genes.sample(200_000, np.random.default_rng(0))))
    assert drawn <= set(listed)
    assert len(drawn) > 0.8 * len(listed)
    balanced = space.sample_balanced(60, np.random.default_rng(0))
    assert len(set(balanced)) == 60


def test_a_search_keeps_rules_and_finds_the_best() -> None:
    class Area:
        def predict(self, networks: Any) -> np.ndarray:
            return KNOTTY.costs["area"](networks)

    genes, limit = genes_of("knotty"), cost_limit(KNOTTY, "area", 300)
    records = list(EvolutionarySearch(KNOTTY, [(Area(), 12)], limit, population=60, parents=15, mutants=20, crossovers=20))
    everything = genes.table(genes.everything())
    areas = KNOTTY.costs["area"](everything)
    assert records[-1].score >= np.quantile(areas[areas <= 300], 0.99)
    for record in records:
        assert KNOTTY.allowed(genes.from_text(record.population)).all()


def test_a_stratum_with_few_networks_is_filled_up_by_others() -> None:
    networks = GPTS.sample_balanced(500, np.random.default_rng(0))
    depths = [network.layers for network in networks]
    assert len(set(networks)) == 500
    assert depths.count(2) == 48
    assert {depths.count(n) for n in (4, 6, 8, 12)} == {113}
    with pytest.raises(ValueError, match="holds 1,548 networks, too few for 1,549"):
        CNNS.sample_balanced(1549, np.random.default_rng(0))


NET = GPTS.read({"layers": 2, "width": 256, "ffn": [1024, 2048], "heads": [8, 8]})


@pytest.mark.parametrize(
    "source",
    [
        {"layers": 2.0, "width": "256", "ffn": "1024 2048", "heads": 8},
        {"width": np.int64(256), "ffn": "[1024, 2048]", "heads": "8;8"},
        {"layers": "2", "width": 256, "ffn_0": 1024, "ffn_1": 2048, "ffn_2": "", "heads_1": 8, "heads_2": 8.0, "heads_3": float("nan")},
        "heads: [8, 8]\nffn: [1024, 2048]\nwidth: 256\nlayers: 2",
        dict(NET),
        NET,
    ],
)
def test_two_descriptions_of_a_network_are_one_object(source: Any) -> None:
    network = GPTS.read(source)
    assert network == NET
    assert hash(network) == hash(NET)
    assert repr(network) == repr(NET)
    assert network.ffn == network["ffn"] == (1024, 2048)
    assert [type(v) for v in (network.layers, *network.heads)] == [int] * 3
    with pytest.raises(AttributeError):
        network.width = 3


def test_only_what_a_network_makes_is_of_it() -> None:
    plain = {"kind": "plain", "size": 1, "bias": True, "rate": 0.01}
    assert dict(KNOTTY.read(plain)) == plain
    assert KNOTTY.read({**plain, "extra": None, "layers": "-", "width_0": ""}) == KNOTTY.read(plain)
    assert KNOTTY.read({**plain, "extra": "a"}, inactive="drop") == KNOTTY.read(plain)
    deep = KNOTTY.read({**plain, "kind": "deep", "layers": 2, "gated": ["off", "on"], "width": [None, 4]})
    assert deep.width == (None, 4)
    assert GPTS.read({**NET, "ffn": [1024, 2048, 2048]}, longer_lists="cut") == NET
    # Trained networks may lie between the proposed values of a range.
    between = KNOTTY.read({**plain, "rate": 0.03})
    assert between.rate == 0.03
    assert KNOTTY.costs["area"]([between])[0] == pytest.approx(1.03)
    with pytest.raises(ValueError, match=r"rate is 0.03; allowed are 0.001, 0.01, 0.1"):
        KNOTTY.row(between)


@pytest.mark.parametrize(
    ("space", "change", "message"),
    [
        (GPTS, {"ffn": [1024, 4096]}, "ffn[1] is 4096; allowed are 1024, 2048"),
        (GPTS, {"ffn": [1024] * 3}, "ffn has 3 entries, layers is 2; set longer_lists: cut"),
        (GPTS, {"widht": 3}, "unknown choice 'widht'; choices are layers, width, ffn, heads; did you mean 'width'?"),
        (GPTS, {"width": None}, "width is missing; allowed are 256, 384, 512"),
        (GPTS, {" width": 256}, "width is given twice"),
        (GPTS, {"width": True}, "width is true; allowed are 256, 384, 512"),
        (GPTS, {"ffn": None, "ffn_0": 1024, "ffn_2": 1024}, "ffn: layers are counted from 0 or 1 without gaps; got ffn_0, ffn_2"),
        (GPTS, {"layers": None, "heads": [8]}, "layers is missing, and lists differ in length: ffn has 2, heads has 1"),
        (CNNS, {"hidden": "no"}, "hidden_width is 16 but hidden == 'yes' does not hold, so that it has no meaning"),
        (KNOTTY, {"size": 3, "layers": 1, "kind": "deep", "gated": "off"}, 'the network breaks the rule "size + layers != 4"'),
    ],
)
def test_what_is_no_network_of_a_space_is_named(space: DeclaredSpace, change: dict[str, Any], message: str) -> None:
    known = {"small GPTs": NET, "digit CNNs": CNNS.smallest(), "knotty": {"kind": "plain", "size": 1, "bias": True, "rate": 0.1}}
    with pytest.raises(ValueError, match=re.escape(message)):
        space.read({**known[space.name], **change})


@pytest.mark.parametrize("name", SPACES)
def test_spaces_are_kept_in_records_and_copies(name: str) -> None:
    space = SPACES[name]
    again = space_from_record(space.to_record())
    assert again == space == pickle.loads(pickle.dumps(space)) == copy.deepcopy(space)
    assert again.fingerprint() == space.fingerprint()
    for cost in space.costs.values():
        network = space.smallest()
        assert pickle.loads(pickle.dumps(cost))([network]) == cost([network])
    other = space_from_record({**space.to_record(), "name" if space is MINI else "space": "other"})
    assert other != space


def test_costs_are_those_of_the_user_and_of_their_space() -> None:
    own = DeclaredSpace("own", [Choice("n", [1, 2])], costs={"ms": lambda networks: [n.n**2 for n in networks], "bad": lambda _: 3})
    assert own.costs["ms"](Genes(own).table(Genes(own).everything())).tolist() == [1, 4]
    with pytest.raises(ValueError, match=r"cost 'bad': expected 2 numbers, one per network, got shape \(\)"):
        own.costs["bad"](list(own.sample(2, np.random.default_rng(0))))
    with pytest.raises(KeyError, match="own has no cost 'FLOPs'; it has ms, bad"):
        own.costs["FLOPs"]
    with pytest.raises(ValueError, match="cost 'parameters' is one of TINY, the networks are of HAT_WMT"):
        TINY.costs["parameters"](Genes(HAT_WMT).table(Genes(HAT_WMT).sample(2, np.random.default_rng(0))))


def test_formulas_reach_nothing_but_numbers() -> None:
    assert set(Evaluator({}).nodes) == set(NODES)
    assert not Evaluator({}).functions
    assert issubclass(Evaluator, simpleeval.SimpleEval)
    formula = Formula("-a**2 + (a >= 2)*(a != 3)*10 + 7 // 2 % 2", {"a": None})
    assert formula({"a": np.arange(5.0)}).tolist() == [-a * a + (a >= 2) * (a != 3) * 10 + 1 for a in range(5)]
    assert Formula("9**9**9**9", {})({}) == np.inf


TEXT = (FOLDER / "small_gpts.yml").read_text()
WRONG: list[tuple[str, str, str]] = [
    ("per: layers, text", "per: layer, text", "space:7: choice 'ffn': per 'layer' is no choice; did you mean 'layers'?"),
    (
        "vocab*width",
        "vocab*widht",
        "space:10: cost 'parameters': unknown name 'widht'; choices and constants are layers, width",
    ),
    ("once: vocab*width", "once: max(width)", "space:10: cost 'parameters': a call (max) is not allowed; allowed are numbers, names, +"),
    ("once: vocab*width", "once: vocab.real", "space:10: cost 'parameters': 'vocab.real' is not allowed"),
    ("once: vocab*width", "once: 1 < width < 3", "space:10: cost 'parameters': a chained comparison"),
    ("once: vocab*width", "once: vocab*ffn", "space:10: cost 'parameters': 'ffn' differs by layer; write it under 'layers:', or ffn_first"),
    ("once: vocab*width", "once: width/(width-256)", "space:10: cost 'parameters' is inf for layers: 2, width: 256"),
    ("once: vocab*width", "once: " + "+".join(["width"] * 200), "space:10: cost 'parameters': a formula of"),
    (
        "once: vocab*width",
        "onec: vocab",
        "space:10: cost 'parameters': unknown 'onec'; allowed are once, scale, unit, layers; did you mean 'once'?",
    ),
    ("order: none", "order: no", "space:8: 'heads': order 'no'; allowed are more, less, none"),
    ("[4, 8]", "[4, 4]", "space:8: 'heads': 4 is given twice"),
    ("[4, 8]", "[1, true]", "space:8: 'heads': true is given twice"),
    ("[4, 8]", f"{list(range(63))}", "space:8: 'heads': 63 values, at most 62"),
    ("[4, 8]", "[4, 08]", "space:8: 'heads': '08' looks like a number; write 8"),
    ("values: [4, 8], per", "value: [4, 8], per", "space:8: 'heads': unknown 'value'; allowed are values, range"),
    ("values: [4, 8]", "range: [0.1, 8]", "space:8: 'heads': steps: expected 2 to 62 values of the range, got nothing"),
    ("values: [4, 8]", "range: [8, 4]", "space:8: 'heads': range: expected [low, high], got [8, 4]"),
    ("values: [4, 8]", "range: [0, 8], log: true", "space:8: 'heads': log: expected true or false, true for a range above 0, got True"),
    ("values: [4, 8]", "values: [4, 8], log: true", "space:8: 'heads': log goes with range, not with values"),
    ("values: [4, 8]", "range: [4, 8], bounds: [1, 9]", "space:8: 'heads': bounds goes with values; those of a range are its ends"),
    ("values: [4, 8]", "values: [4, 8], range: [4, 8]", "space:8: 'heads': expected either values or range"),
    ("[4, 8]", "4", "space:8: 'heads': expected a list of values, got 4"),
    ("[4, 8]", "[4, ' 8']", "space:8: 'heads': expected a line of text without spaces around it, got ' 8'"),
    ("[4, 8]", "[4, [8]]", "space:8: 'heads': expected finite numbers, texts, true or false, got [8]"),
    ("order: none", "order: 3", "space:8: 'heads': order: expected text, got 3"),
    ("order: none", "means: 3", "space:8: 'heads': expected a list of numbers, got 3"),
    ("order: none", "means: [1]", "space:8: 'heads': expected 2 numbers, one per value, got [1]"),
    ("order: none", "before: few", "space:8: 'heads': before is a number, and of a choice that is made per layer; got 'few'"),
    ("  heads:", "  2nd:", "space:8: choice '2nd': a name has letters, digits, - and _, first a letter"),
    ("  heads:", "  [heads]:", "space:8: expected a name before the colon"),
    ("costs:", "rules: 3\ncosts:", "space:9: rules: expected a list of formulas, got 3"),
    ("costs:", "rules: [ffn > 1024*]\ncosts:", "space:9: rule 'ffn > 1024*'"),
    ("unit: M, ", "unit: 3, ", "space:10: cost 'parameters': expected a number as scale and a text as unit"),
    ("once: vocab*width, layers: 4*width**2 + 2*width*ffn", "", "space:10: cost 'parameters': no formula; write one under once, layers"),
    ("space: small GPTs", "space: 3", "space:1: space: expected one line of text, got 3"),
    ("  heads:", "  width:", "space:8: 'width' is given twice (lines 6 and 8)"),
    ("text: is the number of layers", "text: the number of layers", "space:5: 'layers': text completes 'layers ...'"),
    ("[2, 4, 6, 8, 12]", "[0, 2]", "space:7: choice 'ffn': per 'layers' must count layers: integers from 1 to 1000, chosen once"),
    ("order: none", "when: width == 100", "space:8: 'heads': \"width == 100\" never holds"),
    ("order: none", "when: width > 100", "space:8: 'heads': \"width > 100\" always holds: leave it out"),
    ("order: none", "when: heads == 4", "space:8: choice 'heads' depends on itself: heads -> heads"),
    ("order: none", "when: width + *x", "space:8: 'heads': 'width + *x' is no formula"),
    ("order: none", "when: *x", "space:8: text that begins with * & ! % { [ needs quotes"),
    ("costs:", "rules: [width*ffn == 3]\ncosts:", 'space:9: no network of 10,000 drawn keeps "width*ffn == 3"'),
    (
        "costs:",
        "coste:",
        "space:9: space: unknown 'coste'; allowed are space, network, constants, choices, rules, costs; did you mean 'costs'?",
    ),
    ("tokens: 256", "tokens: yes", "space:3: constant 'tokens': expected a finite number, got 'yes'"),
    ("tokens: 256", "width: 256", "space:3: 'width': formulas already have a name 'width'"),
    ("text: is the number of layers}", "text: is the number of layers", "space:6: not valid YAML"),
    ("values: [4, 8]", "values: !!python/name:os.system [4]", "space:8: the tag tag:yaml.org,2002:python/name:os.system is not allowed"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=[new[:40] for _, new, _ in WRONG])
def test_wrong_spaces_are_refused_in_a_line_that_names_file_and_line(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_space(TEXT.replace(old, new, 1))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: x\nchoices:\n  a: [b]", "space:2: the space holds one network: nothing to choose"),
        (
            "space: x\nchoices:\n  a: {values: [b, c], when: d == 'e'}\n  d: {values: [e, f], when: a == 'b'}",
            "depends on itself: a -> d -> a",
        ),
        (
            "space: x\nchoices:\n  a: ['yes', 'no']\n  b: {values: [1, 2], when: a == 'yse'}",
            "space:4: 'b': \"a == 'yse'\" never holds; a is one of 'yes', 'no'",
        ),
        (
            "space: x\nchoices:\n  a: ['yes', 'no']\n  b: {values: [1, 2], when: a + 1}",
            "space:4: 'b': 'a' is a category: compare it by == or !=",
        ),
        ("- a\n- b", "space:1: space: expected a mapping with the keys space, network"),
        ("space: x\nchoices:\n  a: [1, 2]\nrules: [a == 1, b]", "space:4: rule 'b': unknown name 'b'; choices and constants are a"),
        ("space: x\nchoices:\n  a: &a [1, 2]\n  b: *a", "space:3: text that begins with * & ! % { [ needs quotes"),
        ("space: x\n\tchoices: 3", "space:2: not valid YAML: found a tab"),
        (
            "space: x\nchoices:\n  a: [1e9, 1" + "0" * 30 + "]\n  b: {values: [3, 4], per: a}",
            "space:4: choice 'b': per 'a' must count layers",
        ),
        ("space: x\nnetwork: y", "space:1: 'choices' is missing; keys are space, network, constants"),
        ("space: x\nchoices: 3", "space:2: choices: expected a mapping of names, got 3"),
        ("space: x\nchoices: {}", "space:2: choices: expected at least one"),
        ("space: x\na: " + "[" * 2000, "space:2: lists in lists, more than 20 deep"),
        ("nowhere.yml", "no file 'nowhere.yml'"),
        (".", ".: "),
    ],
)
def test_other_wrong_spaces(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_space(text)
